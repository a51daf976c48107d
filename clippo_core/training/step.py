"""One step of contrastive training: in one go, or in micro-batches with cached embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from clippo_core.config import OptimConfig, Precision
from clippo_core.contrastive import contrastive_loss, sigmoid_loss
from clippo_core.modeling.pair_model import DeviceTexts, Embeddings, PairModel
from clippo_core.modeling.patch_sets import PatchSets
from clippo_core.optim import clip_gradients, schedule_multiplier, set_multiplier
from clippo_core.training.precision import autocast
from clippo_core.training.state import TrainState
from clippo_core.vocabulary import PreparedTexts

#: A function from the rows of this shard to those of all shards in order, which is differentiable
#: where the rows are embeddings.
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shard:
    """The part of the global batch that a step works on; by default the whole of it.

    Attributes:
        index: number of the shard.
        count: number of shards, all of equal size.
        gather: function that returns the embeddings of all shards.
        without_exchange: function that makes a context in which gradients add up here, for the
            backward pass after it to exchange.
    """

    index: int = 0
    count: int = 1
    gather: Gather = lambda rows: rows
    without_exchange: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class PairBatch:
    """Pairs of a picture and a text, then pairs of two texts; one loss runs over all of them.

    Tensors that are not on the model's device yet are copied to it as they are encoded.
    """

    images: UInt8[Tensor, "image height_px width_px 3"]
    """Left sides of the first pairs."""
    texts: PreparedTexts | DeviceTexts
    """Right sides of all pairs, in the same order."""
    left_texts: PreparedTexts | DeviceTexts | None = None
    """Left sides of the other pairs."""
    kept_patches: Int64[Tensor, "image kept"] | None = None
    """The patches of each image that are encoded; None encodes all."""
    groups: Int64[Tensor, " pair"] | None = None
    """Number of each pair's group, whose pairs are positives of each other; None: no two pairs of
    the batch are equal."""

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, stop: int) -> PairBatch:
        """Return the pairs from `start` to before `stop`, in the same order."""
        num_images, kept, left = len(self.images), self.kept_patches, self.left_texts
        groups = self.groups
        if left is not None:
            left = part_of_texts(left, *(max(i - num_images, 0) for i in (start, stop)))
        return PairBatch(
            self.images[start:stop],
            part_of_texts(self.texts, start, stop),
            left,
            None if kept is None else kept[start:stop],
            None if groups is None else groups[start:stop],
        )


def part_of_texts(
    texts: PreparedTexts | DeviceTexts, start: int, stop: int
) -> PreparedTexts | DeviceTexts:
    """Return the texts from `start` to before `stop`, in the form that they have."""
    if isinstance(texts, PatchSets):
        return texts.part(start, stop)
    return texts[start:stop] if isinstance(texts, Tensor) else texts.take(np.arange(start, stop))


Encode = Callable[[PairBatch], Embeddings]


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Settings by which a step trades time for memory; the update is the same."""

    micro_batch_size: int | None = None
    """Pairs that are encoded at a time, twice: without gradients for the loss, then with them. None
    takes all at once."""
    logit_rows: int | None = None
    """Rows of logits that are formed at a time; None forms all at once."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a step is made, whatever its batch.

    Attributes:
        precision: precision of the matrix products; the loss is always computed in float32.
        forward: wrapper of the model whose gradients are averages over shards; None for the model.
        shard: the part of the global batch that the step works on.
        memory: settings by which memory is saved.
    """

    precision: Precision = "float32"
    forward: Callable[..., Any] | None = None
    shard: Shard = field(default_factory=Shard)
    memory: StepMemory = field(default_factory=StepMemory)


def train_step(
    state: TrainState,
    batch: PairBatch,
    config: OptimConfig,
    *,
    total_steps: int,
    options: StepOptions | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Make one update of `state`, in place.

    Args:
        state: model, optimizer and progress.
        batch: the shard's pairs.
        config: settings of the optimizer; the schedule is evaluated at `state.step`.
        total_steps: length of the run.
        options: how the step is made; None makes it in float32, of the whole batch at once.

    Returns:
        `loss`, the shard's part of the global batch's loss (the parts add up), and of the update:
        `gradient_norm` before clipping, and `logit_scale`. All stay on the device.
    """
    options = options or StepOptions()
    state.optimizer.zero_grad(set_to_none=True)
    loss = accumulate_gradients(state.model, batch, options)
    update = apply_gradients(state, config, total_steps=total_steps)
    state.samples_seen += len(batch) * options.shard.count
    logit_scale = state.model.logit_scale.detach().sum()
    return {"loss": loss, "logit_scale": logit_scale, **update}


def apply_gradients(
    state: TrainState, config: OptimConfig, *, total_steps: int
) -> dict[str, Float[Tensor, ""]]:
    """Update the parameters by their gradients, as the schedule has it at `state.step`.

    Returns:
        `gradient_norm`, before clipping.
    """
    gradient_norm = clip_gradients(state.model.parameters(), config.gradient_clip_norm)
    multiplier = schedule_multiplier(config.schedule, state.step, total_steps=total_steps)
    set_multiplier(state.optimizer, config, multiplier)
    state.optimizer.step()
    state.step += 1
    return {"gradient_norm": gradient_norm}


def accumulate_gradients(
    model: PairModel, batch: PairBatch, options: StepOptions
) -> Float[Tensor, ""]:
    """Add the gradients of the global batch's loss to the parameters; return the shard's part."""
    encode = functools.partial(_encode, options.forward or model, model.device, options.precision)
    size = options.memory.micro_batch_size
    if size is not None and size < len(batch):
        return _accumulate_cached(encode, batch, size, options)
    loss = _loss(encode(batch), batch.groups, options)
    # Wrappers average gradients over shards; the loss of the global batch is the sum.
    (loss * options.shard.count).backward()
    return loss.detach()


def _accumulate_cached(
    encode: Encode, batch: PairBatch, size: int, options: StepOptions
) -> Float[Tensor, ""]:
    """Add gradients by way of those of the embeddings, with activations of `size` pairs at a time.

    With `e = f(w)` the embeddings and `g = dL/de`, the gradient `dL/dw` is that of `sum(e g)` with
    `g` held fixed, and this sum falls apart into micro-batches.

    Source: GradCache, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
    (arXiv:2101.06983).
    """
    parts = list(_micro_batches(batch, size))
    with torch.no_grad():
        sides = zip(*(encode(part) for part in parts), strict=True)
        left, right, *of_logits = (torch.cat(side) for side in sides)
    for tensor in (left, right, *of_logits):
        tensor.requires_grad_()
    # The scale is the same in every part: one stands for all, and the others' gradients are 0.
    loss = _loss((left, right, *(value[:1] for value in of_logits)), batch.groups, options)
    (loss * options.shard.count).backward()
    wanted = [cast(Tensor, value.grad) for value in (left, right, *of_logits)]
    start = 0
    for number, part in enumerate(parts):
        rows = slice(start, start + len(part))
        start += len(part)
        is_last = number == len(parts) - 1
        with nullcontext() if is_last else options.shard.without_exchange():
            embeddings = encode(part)
            of_part = [gradient[rows] for gradient in wanted[:2]]
            of_part += [gradient[number : number + 1] for gradient in wanted[2:]]
            torch.autograd.backward(embeddings, of_part)
    return loss.detach()


def _micro_batches(batch: PairBatch, size: int) -> Iterator[PairBatch]:
    for start in range(0, len(batch), size):
        yield batch.part(start, min(start + size, len(batch)))


def _encode(
    forward: Callable[..., Embeddings], device: torch.device, precision: Precision, batch: PairBatch
) -> Embeddings:
    with autocast(device, precision):
        images = batch.images.to(device)
        return forward(images, batch.texts, batch.left_texts, batch.kept_patches)


def _loss(
    embeddings: Embeddings, groups: Int64[Tensor, " pair"] | None, options: StepOptions
) -> Float[Tensor, ""]:
    """Return the shard's part of the global batch's contrastive loss, with gradients."""
    left, right, *of_logits = embeddings
    shard, first = options.shard, options.shard.index * len(left)
    loss = contrastive_loss if len(of_logits) == 1 else sigmoid_loss
    return loss(
        shard.gather(left),
        shard.gather(right),
        *of_logits,
        groups=None if groups is None else shard.gather(groups.to(left.device)),
        rows=slice(first, first + len(left)),
        rows_at_a_time=options.memory.logit_rows,
    )
