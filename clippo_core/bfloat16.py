"""bfloat16 in compiled loops, which have no such type: the upper half of a float32's bits.

numba caches compiled callers by their own files: after a change here, delete those in __pycache__.
The functions are marked `no_type_check`, so that no run-time checker wraps what numba has to see.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

_HALF, _ONE, _SIXTEEN = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_NOT_A_NUMBER = np.uint16(0x7FC0)


@njit(inline="always")
@no_type_check
def widen(bits: np.uint16) -> np.float32:
    """The number that the bits of a bfloat16 stand for."""
    return np.uint32(np.uint32(bits) << _SIXTEEN).view(np.float32)


@njit(inline="always")
@no_type_check
def narrow(value: np.float32) -> np.uint16:
    """The bits of the nearest bfloat16, of two as near those of the even one."""
    wide = np.float32(value).view(np.uint32)
    nearest = np.uint16((wide + _HALF + ((wide >> _SIXTEEN) & _ONE)) >> _SIXTEEN)
    return nearest if value == value else _NOT_A_NUMBER
