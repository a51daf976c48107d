"""One training step."""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clippo_core.config import OptimConfig
from clippo_core.contrastive import contrastive_loss_shard
from clippo_core.optim import clip_gradients, schedule_multiplier, set_multiplier
from clippo_core.rendering import TextRasters
from clippo_core.training.state import TrainState

Precision = Literal["float32", "bfloat16"]
#: The model, or a wrapper of it that averages gradients over ranks.
Forward = Callable[[Tensor, TextRasters, TextRasters | None], tuple[Tensor, Tensor, Tensor]]
#: Rows of this shard -> rows of all shards in order, differentiable.
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shard:
    """Which part of the global batch a step works on; the whole of it by default.

    Attributes:
        index: number of the shard.
        count: how many shards of equal size there are.
        gather: how their embeddings come together.
    """

    index: int = 0
    count: int = 1
    gather: Gather = lambda rows: rows


@dataclass(frozen=True)
class PairBatch:
    """Pairs of a picture and a text, then pairs of two texts; one loss runs over all of them."""

    images: UInt8[Tensor, "image height_px width_px 3"]
    """Left sides of the first pairs."""
    texts: TextRasters
    """Right sides of all pairs, in the same order."""
    left_texts: TextRasters | None = None
    """Left sides of the other pairs."""


def train_step(
    state: TrainState,
    batch: PairBatch,
    config: OptimConfig,
    *,
    total_steps: int,
    precision: Precision = "float32",
    forward: Forward | None = None,
    shard: Shard | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Make one update of `state`, in place.

    Args:
        state: model, optimizer and progress.
        batch: the shard's pairs.
        config: of the optimizer; the schedule is evaluated at `state.step`.
        total_steps: length of the run.
        precision: of the matrix products; the loss is computed in float32 always.
        forward: wrapper of `state.model` whose gradients are averages over shards.
        shard: the part of the global batch that `batch` is.

    Returns:
        `loss`, the shard's part of the global batch's loss (the parts add up), and of the update:
        `gradient_norm` before clipping, `logit_scale`, `learning_rate`.
    """
    shard = Shard() if shard is None else shard
    loss = shard_loss(forward or state.model, batch, precision=precision, shard=shard)
    state.optimizer.zero_grad(set_to_none=True)
    # Wrappers average gradients over shards; the loss of the global batch is the sum.
    (loss * shard.count).backward()
    gradient_norm = clip_gradients(state.model.parameters(), config.gradient_clip_norm)
    multiplier = schedule_multiplier(config.schedule, state.step, total_steps=total_steps)
    set_multiplier(state.optimizer, config, multiplier)
    state.optimizer.step()
    state.step += 1
    state.samples_seen += len(batch.texts) * shard.count
    return {
        "loss": loss.detach(),
        "gradient_norm": gradient_norm,
        "logit_scale": state.model.logit_scale.detach().squeeze(),
        "learning_rate": torch.tensor(config.learning_rate * multiplier),
    }


def shard_loss(
    forward: Forward, batch: PairBatch, *, precision: Precision, shard: Shard
) -> Float[Tensor, ""]:
    """The shard's part of the contrastive loss of the global batch, with gradients."""
    device = batch.images.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        left, right, logit_scale = forward(batch.images, batch.texts, batch.left_texts)
    all_left, all_right = shard.gather(left), shard.gather(right)
    offset = shard.index * len(left)
    return contrastive_loss_shard(left, right, all_left, all_right, logit_scale, row_offset=offset)
