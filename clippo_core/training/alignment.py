"""The alignment of the two sides of a batch: right pairs, hardest wrong ones, the gap."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

#: Rows compared at a time, so that memory does not grow with the square of the batch.
BLOCK_ROWS = 1024


@torch.no_grad()
def batch_alignment(
    left: Float[Tensor, "row embed"],
    right: Float[Tensor, "row embed"],
    all_right: Float[Tensor, "pair embed"],
    *,
    row_offset: int = 0,
    num_images: int | None = None,
    groups: Int64[Tensor, " pair"] | None = None,
) -> dict[str, float]:
    """Return the mean cosine of right pairs and of hardest wrong ones, and the modality gap.

    The gap is the distance between the centroids of pictures and of their texts ("Mind the Gap",
    arXiv:2203.02053, section 2), over the pairs that have a picture.

    Args:
        left: unit-length embeddings of a shard's left sides.
        right: unit-length embeddings of its right sides.
        all_right: unit-length embeddings of every right side, the shard's among them.
        row_offset: number of the shard's first row among all rows.
        num_images: number of first rows that are pictures; None if all are.
        groups: number of each pair's group, whose pairs are no negatives of each other; None: no
            two pairs are equal.

    Returns:
        `positive_similarity`; `hardest_negative_similarity` where there is a negative;
        `modality_gap` where there is a picture.
    """
    left, right, all_right = left.float(), right.float(), all_right.float()
    found = {"positive_similarity": (left * right).sum(1).mean()}
    if len(all_right) > 1:
        own = torch.arange(len(all_right), device=left.device) if groups is None else groups
        hardest = torch.cat(
            [
                _hardest_negatives(
                    left[start : start + BLOCK_ROWS], all_right, own, row_offset + start
                )
                for start in range(0, len(left), BLOCK_ROWS)
            ]
        )
        # A row whose group is the whole batch has no negative.
        found["hardest_negative_similarity"] = hardest[hardest > -2].mean()
    pictures = slice(num_images)
    if len(left[pictures]):
        gap = left[pictures].mean(0) - right[pictures].mean(0)
        found["modality_gap"] = torch.linalg.vector_norm(gap)
    values = torch.stack(list(found.values())).tolist()
    named = zip(found, values, strict=True)
    return {name: value for name, value in named if not math.isnan(value)}


def _hardest_negatives(
    rows: Float[Tensor, "row embed"],
    columns: Float[Tensor, "pair embed"],
    groups: Int64[Tensor, " pair"],
    offset: int,
) -> Float[Tensor, " row"]:
    is_positive = groups[offset : offset + len(rows), None] == groups
    return (rows @ columns.T).masked_fill(is_positive, -torch.inf).amax(1)
