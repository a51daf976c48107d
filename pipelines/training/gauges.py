"""Measurements of a rank: its memory, its device's rate, its embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import psutil
import torch
from torch import Tensor

from clippo_core.config import Precision
from clippo_core.modeling.flops import encoded_patches, training_flops
from clippo_core.sample_plan import SamplePlan
from clippo_core.training.alignment import batch_alignment
from clippo_core.training.fine_tuning import LabelledBatch
from clippo_core.training.precision import matmul_flop_per_s
from clippo_core.training.step import Gather, Shard
from pipelines.config.settings import RunConfig
from pipelines.training.feeding import FedBatch
from pipelines.training.parallel import gather_numbers

#: Seconds for which a rank measures the rate of its device.
_MEASURED_S = 0.25


def memory_gb(device: torch.device) -> dict[str, float]:
    """Return the ranks' memory, and the most that their GPUs held; all ranks must ask at once.

    Of each there are the least, the mean and the greatest over ranks, and whose the greatest is, so
    that a thousand ranks make no more charts than one.
    """
    used = [psutil.Process().memory_info().rss / 1e9]
    if device.type == "cuda":
        used.append(torch.cuda.max_memory_allocated(device) / 1e9)
    names = ("rss_gb", "gpu_peak_gb")[: len(used)]
    found: dict[str, float] = {}
    for name, values in zip(names, np.array(gather_numbers(used, device)).T, strict=True):
        found |= {
            f"memory/{name}/least": float(values.min()),
            f"memory/{name}/mean": float(values.mean()),
            f"memory/{name}/greatest": float(values.max()),
            f"memory/{name}/greatest_rank": float(values.argmax()),
        }
    return found


def shares_of_sources(plan: SamplePlan, names: Sequence[str], step: int) -> dict[str, float]:
    """Return each source's share of all samples until a step, beside the share asked for.

    A rejected sample is replaced by one of its own source, so that the shares are those of the
    plan.
    """
    drawn, asked = plan.rows_drawn(step), plan.weights
    found = {}
    for name, rows, weight in zip(names, drawn, asked, strict=True):
        found[f"mixture/{name}/realised"] = rows / sum(drawn)
        found[f"mixture/{name}/asked"] = weight / sum(asked)
    return found


class Gauges:
    """Measures one rank, cheaply, and only at steps that are logged."""

    def __init__(
        self, config: RunConfig, device: torch.device, precision: Precision, *, num_ranks: int
    ) -> None:
        """Measure the device for a moment; every rank must do so at the same time."""
        self._config, self._device, self.num_ranks = config, device, num_ranks
        self._tap = _GatherTap()
        self._flop_per_pair = 0.0
        self._precision = precision
        self.matmul_flop_per_s = matmul_flop_per_s(device, precision, seconds=_MEASURED_S)

    def watch(self, shard: Shard) -> Shard:
        """Return the shard, changed so that the gauges see its embeddings as they pass."""
        self._tap.gather = shard.gather
        return dataclasses.replace(shard, gather=self._tap)

    def read(self, batch: FedBatch, shard: Shard) -> dict[str, float]:
        """Return figures of the step that was just made, by the names that they have in the charts.

        Similarities are of this rank's rows against all columns.

        Args:
            batch: this rank's batch of the step.
            shard: the part of the global batch that it is.
        """
        model, prepared, pairs = self._config.model, batch.prepared, batch.on_device
        rows = len(pairs)
        is_labelled = isinstance(pairs, LabelledBatch)
        texts = [prepared.texts, prepared.left_texts]
        if is_labelled:
            # Either pictures or texts; the rasters on the other side are blank, and not encoded.
            texts = texts[: int(not len(prepared.images))]
        kept = None if is_labelled else pairs.kept_patches
        patches = [np.zeros(0, np.int64), *(encoded_patches(model, found) for found in texts)]
        flops = training_flops(
            model,
            num_images=len(prepared.images),
            text_patches=np.concatenate(patches),
            num_pairs=rows,
            num_columns=0 if is_labelled else rows * shard.count,
            image_patches=None if kept is None else kept.shape[1],
        )
        self._flop_per_pair = flops / rows
        if is_labelled:
            return memory_gb(self._device)
        aligned = batch_alignment(
            *self._tap.last(),
            row_offset=shard.index * rows,
            num_images=len(prepared.images),
            groups=self._tap.groups,
        )
        return {f"embedding/{k}": v for k, v in aligned.items()} | memory_gb(self._device)

    def utilisation(self, pairs_per_s: float) -> dict[str, float]:
        """Return the model's FLOP/s, and their share of the rate measured as the rank started."""
        rate = self._flop_per_pair * pairs_per_s
        return {
            "speed/is_bfloat16": float(self._precision == "bfloat16"),
            "speed/mfu": rate / (self.num_ranks * self.matmul_flop_per_s),
            "speed/model_tflop_per_s": rate / 1e12,
            "speed/matmul_tflop_per_s_per_rank": self.matmul_flop_per_s / 1e12,
        }


class _GatherTap:
    """Passes a step's embeddings on, and keeps the last: left sides first, then right ones.

    Attributes:
        gather: the function that gathers them.
        groups: groups of all pairs of the step, where it has some.
    """

    def __init__(self) -> None:
        self.gather: Gather = lambda rows: rows
        self.groups: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        gathered = self.gather(rows)
        if not rows.is_floating_point():
            self.groups = gathered
            return gathered
        self._seen = [*self._seen[-1:], (rows.detach(), gathered.detach())]
        return gathered

    def last(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return this shard's left and right rows, and the right rows of all shards."""
        (left, _), (right, all_right) = self._seen
        return left, right, all_right
