"""Which precision `auto` is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clippo_core.training import precision
from clippo_core.training.precision import common_precision, find_precision, has_bfloat16
from pipelines.presets import demo
from pipelines.resolve import expected_precision
from pipelines.schema import RunConfig, ScalingConfig

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
        precision._cpu_flags.cache_clear()

    yield pretend
    precision._cpu_flags.cache_clear()


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
def test_auto_is_bfloat16_where_the_cpu_has_its_instructions(cpu_info, info, expected):
    cpu_info(info)
    assert find_precision("auto", CPU) == expected
    assert expected_precision(demo()) == expected
    assert has_bfloat16(CPU) == (expected == "bfloat16")


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
