"""The contrastive loss: of a whole batch, and of one shard of its rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def contrastive_loss(
    left: Float[Tensor, "pair embed"],
    right: Float[Tensor, "pair embed"],
    logit_scale: Float[Tensor, "1"],
) -> Float[Tensor, ""]:
    """Softmax cross-entropy over the batch, both directions, averaged (CLIP, arXiv:2103.00020).

    `L = -1/(2B) sum_i [log softmax_j(s l_i.r_j)_i + log softmax_j(s r_i.l_j)_i]`. A model that
    knows nothing scores ln(B).

    Args:
        left: unit-length embeddings of one side of each pair.
        right: those of the other side, in the same order.
        logit_scale: the positive multiplier `s`.
    """
    return contrastive_loss_shard(left, right, left, right, logit_scale, row_offset=0)


def contrastive_loss_shard(
    left: Float[Tensor, "row embed"],
    right: Float[Tensor, "row embed"],
    all_left: Float[Tensor, "pair embed"],
    all_right: Float[Tensor, "pair embed"],
    logit_scale: Float[Tensor, "1"],
    *,
    row_offset: int,
) -> Float[Tensor, ""]:
    """The part of `contrastive_loss` that belongs to some rows; over all shards they add up to it.

    Args:
        left: the shard's rows of the left side.
        right: the same rows of the right side.
        all_left: every row of the left side, the shard's among them.
        all_right: every row of the right side.
        logit_scale: the positive multiplier of the similarities.
        row_offset: where the shard's rows stand among all rows.
    """
    # fp32 on purpose: bf16 keeps 8 bits, too few to rank a 10k-way softmax.
    with torch.autocast(left.device.type, enabled=False):
        targets = torch.arange(len(left), device=left.device) + row_offset
        scale = logit_scale.float()
        forward = F.cross_entropy(
            scale * left.float() @ all_right.float().T, targets, reduction="sum"
        )
        backward = F.cross_entropy(
            scale * right.float() @ all_left.float().T, targets, reduction="sum"
        )
        return (forward + backward) / (2 * len(all_left))
