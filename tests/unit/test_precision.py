"""Which precision `auto` is."""

from __future__ import annotations

import pytest
import torch

from clippo_core.training import precision
from clippo_core.training.precision import common_precision, find_precision
from pipelines.config.derived import expected_precision
from pipelines.config.presets import demo
from pipelines.config.settings import RunConfig, ScalingConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(has_bfloat16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert find_precision("auto", GPU) == expected
    assert find_precision("auto", CPU) == "float32"


def test_a_named_precision_is_kept():
    assert find_precision("bfloat16", CPU) == "bfloat16"
    assert find_precision("float32", GPU) == "float32"


def test_before_a_run_gpus_are_supposed_to_have_bfloat16():
    assert expected_precision(RunConfig(scaling=ScalingConfig(use_gpu=True))) == "bfloat16"
    assert expected_precision(demo()) == "float32"


def test_the_rate_counts_the_arithmetic_of_the_fastest_product(monkeypatch):
    monkeypatch.setattr(precision, "_MATRIX_SIDE", {"cpu": 10})
    times = iter([0.0, 0.0, 4.0, 4.0, 4.0, 6.0, 6.0, 6.0, 9.0, 9.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(times))
    rate = precision.matmul_flop_per_s(CPU, "float32", seconds=9.0)
    assert rate == 2 * 10**3 / 2.0


@pytest.mark.parametrize(
    ("of_ranks", "expected"),
    [
        (["bfloat16"], "bfloat16"),
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["bfloat16", "float32"], "float32"),
        (["float32", "float32"], "float32"),
    ],
)
def test_one_rank_without_bfloat16_decides_for_all(of_ranks, expected):
    assert common_precision(of_ranks) == expected
