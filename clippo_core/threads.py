"""Compiled loops on as many threads as torch has; torch's own take no work but torch's."""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

#: To wake a thread up takes as long as a loop over some thousands.
MIN_PART = 2**16

Item = TypeVar("Item")
Values = np.ndarray[Any, np.dtype[Any]]


def share_out(work: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Do something with each item, in several threads, of which the caller's is one.

    Args:
        work: what takes its time releases Python's lock (numba's `nogil`).
        items: the largest ones best come first.
    """
    left = iter(items)

    def take() -> None:
        for item in left:
            work(item)

    others = min(torch.get_num_threads(), len(items)) - 1
    helpers = [_threads(others).submit(take) for _ in range(others)]
    take()
    for helper in helpers:
        helper.result()


def in_parts(loop: Callable[..., None], *arrays: Values) -> None:
    """Call a loop on parts of arrays of equal length, in several threads.

    Args:
        loop: releases Python's lock.
        arrays: of one dimension; what is written to is among them.
    """
    size = len(arrays[0])
    num_parts = max(1, min(torch.get_num_threads(), size // MIN_PART))
    ends = [size * part // num_parts for part in range(num_parts + 1)]
    parts = [slice(*bounds) for bounds in pairwise(ends)]
    share_out(lambda part: loop(*(array[part] for array in arrays)), parts)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="loop")


# A fork has none of its parent's threads.
os.register_at_fork(after_in_child=_threads.cache_clear)
