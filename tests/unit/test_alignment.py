"""Similarities of a batch equal those of a loop over its pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clippo_core.training import alignment
from clippo_core.training.alignment import batch_alignment


def embeddings(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def slowly(left: np.ndarray, right: np.ndarray, num_images: int) -> dict[str, float]:
    similarity = left @ right.T
    hardest = [max(np.delete(row, number)) for number, row in enumerate(similarity)]
    gap = np.linalg.norm(left[:num_images].mean(0) - right[:num_images].mean(0))
    return {
        "positive_similarity": float(similarity.diagonal().mean()),
        "hardest_negative_similarity": float(np.mean(hardest)),
        "modality_gap": float(gap),
    }


def test_a_batch_is_described_as_a_loop_over_its_pairs_does(monkeypatch):
    monkeypatch.setattr(alignment, "BLOCK_ROWS", 3)
    left, right = embeddings(10, 0), embeddings(10, 1)
    expected = slowly(left.numpy(), right.numpy(), num_images=7)
    assert batch_alignment(left, right, right, num_images=7) == pytest.approx(expected, abs=1e-6)


def test_the_shards_of_a_batch_average_to_the_whole():
    left, right = embeddings(8, 0), embeddings(8, 1)
    whole = batch_alignment(left, right, right)
    parts = [
        batch_alignment(left[s : s + 4], right[s : s + 4], right, row_offset=s) for s in (0, 4)
    ]
    for name in ("positive_similarity", "hardest_negative_similarity"):
        assert np.mean([part[name] for part in parts]) == pytest.approx(whole[name], abs=1e-6)


def test_what_a_batch_does_not_have_is_left_out():
    one = embeddings(1, 0)
    assert batch_alignment(one, one, one, num_images=0) == pytest.approx(
        {"positive_similarity": 1.0}
    )
