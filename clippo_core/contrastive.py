"""The contrastive loss of a batch, whole or of one shard of its rows."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def contrastive_loss(
    left: Float[Tensor, "pair embed"],
    right: Float[Tensor, "pair embed"],
    logit_scale: Float[Tensor, "1"],
    *,
    rows: slice | None = None,
    rows_at_a_time: int | None = None,
) -> Float[Tensor, ""]:
    """Return the softmax cross-entropy of a batch, averaged over both directions.

    `L = -1/(2B) sum_i [log softmax_j(s l_i.r_j)_i + log softmax_j(s r_i.l_j)_i]`, as defined by
    CLIP (arXiv:2103.00020). A model that knows nothing scores ln(B).

    Args:
        left: unit-length embeddings of one side of each pair.
        right: unit-length embeddings of the other sides, in the same order.
        logit_scale: the positive multiplier `s`.
        rows: the pairs `i` over which the sum runs, one shard of them: the losses of all shards
            add up to that of the batch. None sums over all.
        rows_at_a_time: rows of logits that exist at a time; None forms all at once.
    """
    first, stop, _ = (rows or slice(None)).indices(len(left))
    own = slice(first, stop)
    # fp32 on purpose: bf16 keeps 8 bits, too few to rank a 10k-way softmax.
    with torch.autocast(left.device.type, enabled=False):
        left, right, scale = left.float(), right.float(), logit_scale.float()
        sides = ((left[own], right), (right[own], left))
        if rows_at_a_time is None or rows_at_a_time >= stop - first:
            parts = [_cross_entropy(*side, scale, first) for side in sides]
        else:
            parts = [
                cast(Tensor, _BlockwiseCrossEntropy.apply(*side, scale, first, rows_at_a_time))
                for side in sides
            ]
        return (parts[0] + parts[1]) / (2 * len(left))


def _cross_entropy(
    queries: Float[Tensor, "row embed"],
    keys: Float[Tensor, "pair embed"],
    scale: Float[Tensor, "1"],
    row_offset: int,
) -> Float[Tensor, ""]:
    """Sum the cross-entropy over the queries; a query's target is the key of its own row."""
    targets = torch.arange(len(queries), device=queries.device) + row_offset
    return F.cross_entropy(scale * queries @ keys.T, targets, reduction="sum")


class _BlockwiseCrossEntropy(torch.autograd.Function):
    """The function `_cross_entropy`, computed in blocks of rows.

    The gradients are formed with the loss, while a block's logits are there: a scalar's gradient
    is the same but for a factor, whatever comes after, and no logits are formed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, row_offset: int, rows: int
    ) -> Tensor:
        total = queries.new_zeros(())
        gradients = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(scale)
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows].detach().requires_grad_()
            inputs = (block, keys.detach().requires_grad_(), scale.detach().requires_grad_())
            with torch.enable_grad():
                loss = _cross_entropy(*inputs, row_offset + start)
            of_block, of_keys, of_scale = torch.autograd.grad(loss, inputs)
            gradients[0][start : start + rows] = of_block
            gradients[1].add_(of_keys)
            gradients[2].add_(of_scale)
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(upstream[0] * gradient for gradient in ctx.saved_tensors), None, None
