"""The alignment of the two sides of a batch: right pairs, hardest wrong ones, the gap."""

from __future__ import annotations

import torch
from jaxtyping import Float
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

    Returns:
        `positive_similarity`; `hardest_negative_similarity` where there is a negative;
        `modality_gap` where there is a picture.
    """
    left, right, all_right = left.float(), right.float(), all_right.float()
    found = {"positive_similarity": (left * right).sum(1).mean()}
    if len(all_right) > 1:
        hardest = [
            _hardest_negatives(left[start : start + BLOCK_ROWS], all_right, row_offset + start)
            for start in range(0, len(left), BLOCK_ROWS)
        ]
        found["hardest_negative_similarity"] = torch.cat(hardest).mean()
    pictures = slice(num_images)
    if len(left[pictures]):
        gap = left[pictures].mean(0) - right[pictures].mean(0)
        found["modality_gap"] = torch.linalg.vector_norm(gap)
    values = torch.stack(list(found.values())).tolist()
    return dict(zip(found, values, strict=True))


def _hardest_negatives(
    rows: Float[Tensor, "row embed"], columns: Float[Tensor, "pair embed"], offset: int
) -> Float[Tensor, " row"]:
    similarity = rows @ columns.T
    similarity.diagonal(offset).fill_(-torch.inf)
    return similarity.amax(1)
