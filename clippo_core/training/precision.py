"""In which numbers a device multiplies matrices."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from clippo_core.config import Precision, PrecisionSetting

#: What Linux calls a CPU's instructions for products in bfloat16: x86's, and Arm's.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
#: Side of the matrices of `matmul_flop_per_s`, by kind of device: large enough to be at full speed.
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
#: How often the two precisions are compared: a first product makes threads, and any may be held up.
_ROUNDS = 3


def find_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """The precision that a setting means on a device.

    On a CPU with instructions for bfloat16, "auto" tries both for a tenth of a second, once in a
    process: there are CPUs whose instructions for bfloat16 are slower than those for float32.
    """
    if setting != "auto":
        return setting
    return "bfloat16" if has_bfloat16(device) and _is_bfloat16_faster(device) else "float32"


def common_precision(of_ranks: Iterable[Precision]) -> Precision:
    """The precision of a run whose ranks found these: one that all of them can compute in."""
    return "bfloat16" if set(of_ranks) == {"bfloat16"} else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for matrix products in bfloat16.

    Without them a CPU computes the same, tens of times as slowly as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not _BFLOAT16_FLAGS.isdisjoint(_cpu_flags())


def matmul_flop_per_s(device: torch.device, precision: Precision, *, seconds: float = 0.0) -> float:
    """Rate of matrix products on a device with this process' threads; the best of a few.

    Measured, not looked up: what a step is to be compared with is what this machine can do.

    Args:
        device: where.
        precision: of the matrices.
        seconds: for how long to go on after the first product.
    """
    side = _MATRIX_SIDE.get(device.type, 1024)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # the program's own numbers stay as they are
    left, right = (
        torch.rand(side, side, generator=generator, device=device, dtype=dtype) for _ in range(2)
    )
    out = torch.empty_like(left)
    best_s, started = float("inf"), time.perf_counter()
    while best_s == float("inf") or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - before)
    return 2 * side**3 / best_s


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context that multiplies matrices in that precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@functools.cache
def _is_bfloat16_faster(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    # In turns, so that what slows the machine for a moment slows both.
    rates = [
        [matmul_flop_per_s(device, precision) for precision in ("float32", "bfloat16")]
        for _ in range(_ROUNDS)
    ]
    of_float32, of_bfloat16 = map(max, zip(*rates, strict=True))
    return of_bfloat16 >= of_float32


@functools.cache
def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()
