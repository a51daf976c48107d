"""Retrieval recall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clippo_core.evaluation.retrieval import retrieval_recall

REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize("block_rows", [1, 7, 512])
def test_recalls_agree_exactly_for_any_block_size(block_rows: int):
    with np.load(REFERENCE / "retrieval.npz") as file:
        arrays = dict(file)
    similarity = arrays["similarity"].astype(np.float32)
    # With these texts, a picture's embedding is its similarity to each of them.
    texts = np.eye(similarity.shape[1], dtype=np.float32)
    ours = retrieval_recall(similarity, texts, arrays["image_of_text"], block_rows=block_rows)
    expected = {k.replace("/Recall@", "_recall@"): float(v) for k, v in arrays.items() if "/" in k}
    assert len(expected) == 6
    assert ours == expected
