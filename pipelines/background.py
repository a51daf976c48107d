"""Work that takes the CPU time that is left over."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_background(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a thread that yields to all others, and wait for it.

    The threads of a rank wait for each other many times in a step, so that a render task or an
    evaluation on their cores would hold all of them up; while a rank waits for a batch, the cores
    are free. A thread, since Linux schedules threads, and a process could not be set back.
    """
    return _thread().submit(function, *args, **kwargs).result()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="background", initializer=yield_to_others)


def yield_to_others() -> None:
    """Have the calling thread run only while a core is idle, as far as the system allows it."""
    # Threads that this one starts, such as torch's, inherit it.
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
