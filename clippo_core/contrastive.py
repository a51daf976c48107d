"""The contrastive losses of a batch, whole or of one shard of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

#: The loss of some rows against all columns, summed over the rows: of queries, keys, the learned
#: parameters of the logits, and the number of the first row.
RowLoss = Callable[..., Tensor]


def contrastive_loss(
    left: Float[Tensor, "pair embed"],
    right: Float[Tensor, "pair embed"],
    logit_scale: Float[Tensor, "1"],
    *,
    groups: Int64[Tensor, " pair"] | None = None,
    rows: slice | None = None,
    rows_at_a_time: int | None = None,
) -> Float[Tensor, ""]:
    """Return the softmax cross-entropy of a batch, averaged over both directions.

    `L = -1/(2B) sum_i mean_{j in P(i)} [log softmax_j(s l_i.r_j) + log softmax_j(s r_i.l_j)]`,
    where `P(i)` are the pairs of the group of pair `i`. A model that knows nothing scores ln(B).

    Without groups `P(i) = {i}`, as CLIP defines it (arXiv:2103.00020). With groups all pairs that
    mean the same are positives of each other: UniCL (arXiv:2204.03610, equation 3).

    Args:
        left: unit-length embeddings of one side of each pair.
        right: unit-length embeddings of the other sides, in the same order.
        logit_scale: the positive multiplier `s`.
        groups: number of each pair's group; None: no two pairs are equal.
        rows: the pairs `i` over which the sum runs, one shard of them: the losses of all shards
            add up to that of the batch. None sums over all.
        rows_at_a_time: rows of logits that exist at a time; None forms all at once.
    """

    def row_loss(queries: Tensor, keys: Tensor, scale: Tensor, first: int) -> Tensor:
        logits = scale * queries @ keys.T
        if groups is None:
            own = torch.arange(len(queries), device=queries.device) + first
            return F.cross_entropy(logits, own, reduction="sum")
        positive = _is_positive(groups, first, len(queries))
        weights = positive / positive.sum(1, keepdim=True)
        return F.cross_entropy(logits, weights, reduction="sum")

    first, stop, _ = (rows or slice(None)).indices(len(left))
    # fp32 on purpose: bf16 keeps 8 bits, too few to rank a 10k-way softmax.
    with torch.autocast(left.device.type, enabled=False):
        left, right, scale = left.float(), right.float(), logit_scale.float()
        total = _in_blocks(row_loss, left[first:stop], right, (scale,), first, rows_at_a_time)
        total = total + _in_blocks(
            row_loss, right[first:stop], left, (scale,), first, rows_at_a_time
        )
        return total / (2 * len(left))


def sigmoid_loss(
    left: Float[Tensor, "pair embed"],
    right: Float[Tensor, "pair embed"],
    logit_scale: Float[Tensor, "1"],
    logit_bias: Float[Tensor, "1"],
    *,
    groups: Int64[Tensor, " pair"] | None = None,
    rows: slice | None = None,
    rows_at_a_time: int | None = None,
) -> Float[Tensor, ""]:
    """Return SigLIP's loss of a batch: each pairing of two sides is judged by itself.

    `L = -1/B sum_i sum_j log sigmoid(z_ij (s l_i.r_j + b))`, where `z_ij` is 1 if the pairs `i` and
    `j` are of one group, and -1 otherwise (arXiv:2303.15343, section 3.2).

    Args:
        left: unit-length embeddings of one side of each pair.
        right: unit-length embeddings of the other sides, in the same order.
        logit_scale: the positive multiplier `s`.
        logit_bias: the learned summand `b`.
        groups: number of each pair's group; None: no two pairs are equal.
        rows: the pairs `i` over which the sum runs, as in `contrastive_loss`.
        rows_at_a_time: rows of logits that exist at a time; None forms all at once.
    """

    def row_loss(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
        logits = scale * queries @ keys.T + bias
        own = torch.arange(len(keys), device=keys.device) if groups is None else groups
        sign = 2.0 * _is_positive(own, first, len(queries)) - 1
        return -F.logsigmoid(sign * logits).sum()

    first, stop, _ = (rows or slice(None)).indices(len(left))
    with torch.autocast(left.device.type, enabled=False):
        learned = (logit_scale.float(), logit_bias.float())
        queries, keys = left.float()[first:stop], right.float()
        return _in_blocks(row_loss, queries, keys, learned, first, rows_at_a_time) / len(left)


def _is_positive(
    groups: Int64[Tensor, " pair"], first: int, count: int
) -> Bool[Tensor, "row pair"]:
    """Tell which pairs are of the group of each of `count` rows from `first` on."""
    return groups[first : first + count, None] == groups


def _in_blocks(
    row_loss: RowLoss,
    queries: Float[Tensor, "row embed"],
    keys: Float[Tensor, "pair embed"],
    learned: tuple[Tensor, ...],
    first: int,
    rows_at_a_time: int | None,
) -> Float[Tensor, ""]:
    """Return the sum of a loss over rows, of which some exist at a time."""
    if rows_at_a_time is None or rows_at_a_time >= len(queries):
        return row_loss(queries, keys, *learned, first)
    return cast(Tensor, _Blockwise.apply(row_loss, first, rows_at_a_time, queries, keys, *learned))


class _Blockwise(torch.autograd.Function):
    """A loss of rows, computed in blocks of them.

    The gradients are formed with the loss, while a block's logits are there: a scalar's gradient
    is the same but for a factor, whatever comes after, and no logits are formed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        row_loss: RowLoss,
        first: int,
        rows: int,
        queries: Tensor,
        *others: Tensor,
    ) -> Tensor:
        total = queries.new_zeros(())
        gradients = [torch.zeros_like(tensor) for tensor in (queries, *others)]
        for start in range(0, len(queries), rows):
            parts = (queries[start : start + rows], *others)
            inputs = [tensor.detach().requires_grad_() for tensor in parts]
            with torch.enable_grad():
                loss = row_loss(*inputs, first + start)
            of_block, *of_others = torch.autograd.grad(loss, inputs)
            gradients[0][start : start + rows] = of_block
            for gradient, part in zip(gradients[1:], of_others, strict=True):
                gradient.add_(part)
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(upstream[0] * gradient for gradient in ctx.saved_tensors)
