"""How the C library keeps memory that a step frees, for the next one.

glibc gives large blocks back to the system at once, and the system clears what it hands out anew:
a fifth to a half of a large step's time on a fast CPU (EXPERIMENTS.md).
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let this process keep what it frees. Nothing happens where the C library is not glibc.

    Threads that glibc gave a heap of their own (all but the first, unless `use_one_heap` was called
    before they began) still give back what is larger than 64 MiB.
    """
    _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def use_one_heap() -> None:
    """Let threads that begin after this share the first one's heap, in forks of this process too.

    A thread of Ray Train, not the first of its process, makes a rank's steps.
    """
    _set({_M_ARENA_MAX: 1})


def _set(options: dict[int, int]) -> None:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in options.items():
            set_option(option, value)
