"""Which precision `auto` is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clippo_core.training import precision
from clippo_core.training.precision import common_precision, find_precision, has_bfloat16
from pipelines.config.presets import demo
from pipelines.config.resolution import expected_precision
from pipelines.config.settings import RunConfig, ScalingConfig

CPU = torch.device("cpu")


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a machine of that /proc/cpuinfo."""
    original = precision.Path

    def pretend(text: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(
            precision, "Path", lambda name: path if name == "/proc/cpuinfo" else original(name)
        )
        for found in (precision._cpu_flags, precision._is_bfloat16_faster):
            found.cache_clear()

    yield pretend
    for found in (precision._cpu_flags, precision._is_bfloat16_faster):
        found.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Lets products seem to reach these rates, call by call; the last ones ever after."""

    def pretend(**rates: list[float]) -> None:
        left = {name: list(values) for name, values in rates.items()}

        def rate(device: torch.device, precision: str) -> float:
            values = left[precision]
            return values.pop(0) if len(values) > 1 else values[0]

        monkeypatch.setattr(precision, "matmul_flop_per_s", rate)

    return pretend


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "bfloat16"),
        ("flags : sse amx_bf16 amx_tile\n", "bfloat16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bfloat16"),
        ("flags : fpu avx2 fma\n", "float32"),
        ("flags : fpu avx2\nvmx flags : avx512_bf16\n", "float32"),
        ("nothing of the kind\n", "float32"),
        (None, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_has_its_instructions(cpu_info, measured, info, expected):
    cpu_info(info)
    measured(float32=[1.0], bfloat16=[2.0])
    assert find_precision("auto", CPU) == expected
    assert expected_precision(demo()) == expected
    assert has_bfloat16(CPU) == (expected == "bfloat16")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        ([260.0], [165.0], "float32"),
        ([260.0], [260.0], "bfloat16"),
        ([260.0], [20.0, 20.0, 500.0], "bfloat16"),
        ([20.0, 260.0], [165.0], "float32"),
    ],
    ids=["slower", "as_fast", "held_up_twice", "float32_held_up"],
)
def test_auto_is_what_multiplies_faster(cpu_info, measured, float32, bfloat16, expected):
    cpu_info("flags : avx512f avx512_bf16\n")
    measured(float32=float32, bfloat16=bfloat16)
    assert find_precision("auto", CPU) == expected
    assert has_bfloat16(CPU)


def test_finding_out_is_done_once_and_draws_no_random_numbers(cpu_info, monkeypatch):
    cpu_info("flags : avx512f avx512_bf16\n")
    asked = []
    original = precision.matmul_flop_per_s
    monkeypatch.setattr(precision, "_MATRIX_SIDE", {"cpu": 8})
    monkeypatch.setattr(
        precision,
        "matmul_flop_per_s",
        lambda *of: (asked.append(of), original(*of))[1],
    )
    before = torch.get_rng_state()
    assert find_precision("auto", CPU) == find_precision("auto", CPU)
    assert len(asked) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_counts_the_arithmetic_of_the_fastest_product(monkeypatch):
    monkeypatch.setattr(precision, "_MATRIX_SIDE", {"cpu": 10})
    times = iter([0.0, 0.0, 4.0, 4.0, 4.0, 6.0, 6.0, 6.0, 9.0, 9.0])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(times))
    rate = precision.matmul_flop_per_s(CPU, "float32", seconds=9.0)
    assert rate == 2 * 10**3 / 2.0


def test_a_named_precision_is_kept(cpu_info):
    cpu_info("flags : fpu avx2\n")
    assert find_precision("bfloat16", CPU) == "bfloat16"
    cpu_info("flags : avx512_bf16\n")
    assert find_precision("float32", CPU) == "float32"


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


def test_gpus_are_supposed_to_have_bfloat16(cpu_info):
    cpu_info("flags : fpu avx2\n")
    assert expected_precision(RunConfig(scaling=ScalingConfig(use_gpu=True))) == "bfloat16"
