"""What an `.npy` stream says of itself, before memory is taken for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def declared_bytes(stream: Any) -> int:
    """Return the size of the array that a stream says it holds; it is read up to its first value.

    Args:
        stream: binary file, of any kind that Python has.

    Raises:
        ValueError: if it does not begin as an `.npy` file does.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of the .npy format; expected 1.0 or 2.0")
    is_first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    return math.prod(shape) * kind.itemsize
