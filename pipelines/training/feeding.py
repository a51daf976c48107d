"""Batches of the stream on the rank's device, the next one copied while this one computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clippo_core.modeling import PairModel
from clippo_core.modeling.patch_sets import PatchSets
from clippo_core.training.fine_tuning import LabelledBatch
from clippo_core.training.patch_dropping import draw_kept_patches
from clippo_core.training.step import PairBatch
from clippo_core.transfer import to_device
from pipelines.config.settings import TrainConfig
from pipelines.stream.batch import PreparedBatch


@dataclass(frozen=True, eq=False)
class FedBatch:
    """One rank's batch, as it came and as the model takes it.

    Attributes:
        prepared: the batch on the host.
        on_device: pairs, or labelled samples, on the model's device.
        arrived_at: Unix time at which the rank took it from the stream.
    """

    prepared: PreparedBatch
    on_device: PairBatch | LabelledBatch
    arrived_at: float


class DeviceFeed:
    """Brings each batch to the device while the step before it computes.

    On a GPU the copies go from pinned memory, on a stream of their own, so that neither the host
    nor the step waits for them. How long the device had nothing to do is read from events on it; on
    a CPU, where steps and waiting take turns, from the clock.
    """

    def __init__(self, batches: Iterator[PreparedBatch], model: PairModel, train: TrainConfig):
        """Take the rank's part of the stream; nothing is asked for yet."""
        self._batches, self._model, self._train = batches, model, train
        is_cuda = model.device.type == "cuda"
        self._copying = torch.cuda.Stream(model.device) if is_cuda else None
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waited_s = 0.0
        self.first_batch_s = 0.0

    def __iter__(self) -> Iterator[FedBatch]:
        """Yield the batches; the next one is asked for once the step on this one is under way."""
        started = time.perf_counter()
        ahead = self._fetch()
        self.first_batch_s = time.perf_counter() - started
        ended = None
        while ahead is not None:
            batch, is_ready = ahead
            if self._copying is not None and is_ready is not None:
                computing = torch.cuda.current_stream(self._model.device)
                computing.wait_event(is_ready)
                for tensor in tensors_of(batch.on_device):
                    tensor.record_stream(computing)
                if ended is not None:
                    self._gaps.append((ended, _record(computing)))
            yield batch
            if self._copying is not None:
                ended = _record(torch.cuda.current_stream(self._model.device))
            started = time.perf_counter()
            ahead = self._fetch()
            if self._copying is None:
                self._waited_s += time.perf_counter() - started

    def take_wait_s(self) -> float:
        """Return the seconds that the device waited for data since the last call.

        On a GPU all steps so far must have ended.
        """
        waited = self._waited_s + sum(a.elapsed_time(b) for a, b in self._gaps) / 1000
        self._waited_s, self._gaps = 0.0, []
        return waited

    def _fetch(self) -> tuple[FedBatch, torch.cuda.Event | None] | None:
        """Take the next batch from the stream, and begin to copy it; None at the end."""
        prepared = next(self._batches, None)
        if prepared is None:
            return None
        arrived_at = time.time()
        if self._copying is None:
            return FedBatch(prepared, self._on_device(prepared), arrived_at), None
        with torch.cuda.stream(self._copying):
            batch = FedBatch(prepared, self._on_device(prepared), arrived_at)
            return batch, _record(self._copying)

    def _on_device(self, batch: PreparedBatch) -> PairBatch | LabelledBatch:
        device = self._model.device
        images = to_device(batch.images, device)
        if batch.targets is not None:
            texts = batch.texts if len(images) else self._model.on_device(batch.texts)
            return LabelledBatch(images, texts, to_device(batch.targets, device))
        left = self._model.on_device(batch.left_texts) if len(batch.left_texts) else None
        texts = self._model.on_device(batch.texts)
        groups = None
        if self._train.positives == "equal":
            groups = to_device(batch.groups, device)
        return PairBatch(images, texts, left, self._kept_patches(batch), groups)

    def _kept_patches(self, batch: PreparedBatch) -> Tensor | None:
        """Draw the image patches that the step encodes, the same for any number of ranks."""
        drop = self._train.patch_drop_at(batch.step)
        if not drop:
            return None
        kept = draw_kept_patches(
            drop,
            seed=self._train.seed,
            step=batch.step,
            first_image=batch.first_image,
            num_images=len(batch.images),
            num_patches=self._model.config.grid_size**2,
        )
        return to_device(kept, self._model.device)


def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event


def tensors_of(batch: PairBatch | LabelledBatch) -> Iterator[Tensor]:
    """Yield the tensors that a batch consists of."""
    parts: list[Any] = [batch.images, batch.texts]
    if isinstance(batch, LabelledBatch):
        parts.append(batch.targets)
    else:
        parts += [batch.left_texts, batch.kept_patches, batch.groups]
    for part in parts:
        if isinstance(part, PatchSets):
            yield from (part.pixels, part.positions)
        elif isinstance(part, Tensor):
            yield part
