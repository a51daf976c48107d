"""The number type in which a device multiplies matrices, and how fast it does."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from clippo_core.config import Precision, PrecisionSetting

#: Side of the matrices of `matmul_flop_per_s`, by kind of device: large enough to be at full speed.
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}


def find_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Return the precision that a setting means: "auto" is bfloat16 on a GPU that has it."""
    if setting != "auto":
        return setting
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def common_precision(of_ranks: Iterable[Precision]) -> Precision:
    """Return the precision in which all ranks can compute, of what each of them found."""
    return "bfloat16" if set(of_ranks) == {"bfloat16"} else "float32"


def matmul_flop_per_s(device: torch.device, precision: Precision, *, seconds: float = 0.0) -> float:
    """Return the measured rate of matrix products on a device with this process' threads.

    The speed of a step is compared with what this machine can do, not with a vendor's figure.

    Args:
        device: device to measure.
        precision: number type of the matrices.
        seconds: time to go on after the first product; the best of all counts.
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
    """Return a context that multiplies matrices in that precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
