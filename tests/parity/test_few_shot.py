"""Few-shot linear classification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clippo_core.evaluation.few_shot import few_shot

REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize("case", ["tall", "wide"])
def test_accuracies_agree_exactly_for_every_regulariser(case: str):
    with np.load(REFERENCE / "few_shot.npz") as file:
        arrays = {key.removeprefix(f"{case}/"): file[key] for key in file if key.startswith(case)}
    expected = {float(k.split("/")[1]): v for k, v in arrays.items() if k.startswith("accuracy")}
    ours = few_shot(
        arrays["x"],
        arrays["y"],
        arrays["x_test"],
        arrays["y_test"],
        num_classes=int(arrays["y"].max()) + 1,
        l2=list(expected),
    )
    assert len(expected) == 3
    # The reference holds float32 means of 500 zeros and ones.
    found = dict(zip(ours.l2, ours.test_accuracy, strict=True))
    assert {k: round(v * 500) for k, v in found.items()} == {
        k: round(float(v) * 500) for k, v in expected.items()
    }
