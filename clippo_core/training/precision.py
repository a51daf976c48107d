"""In which numbers a device multiplies matrices."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import torch

from clippo_core.config import Precision, PrecisionSetting

#: What Linux calls a CPU's instructions for products in bfloat16: x86's, and Arm's.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def find_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """The precision that a setting means on a device."""
    if setting != "auto":
        return setting
    return "bfloat16" if has_bfloat16(device) else "float32"


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


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context that multiplies matrices in that precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()
