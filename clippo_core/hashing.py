"""Random numbers as a pure function of a key and a value: no state, any order of asking."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_values(values: UInt64[np.ndarray, "*shape"], *, key: int) -> UInt64[np.ndarray, "*shape"]:
    """Return the splitmix64 finalizer of `key + (value + 1) * golden ratio`, modulo 2^64."""
    x = (values + np.uint64(1)) * _GOLDEN + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(*numbers: int) -> int:
    """Return one 64-bit key made of several numbers."""
    key = 0
    for number in numbers:
        key = int(hash_values(np.array([number & (2**64 - 1)], np.uint64), key=key)[0])
    return key
