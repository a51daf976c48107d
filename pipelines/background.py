"""Work that takes the CPU time that is left over."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import ray

Result = TypeVar("Result")


class BackgroundTask:
    """A function as a Ray task that takes the CPU time that is left over, from its imports on.

    Ray opens a task's arguments in the main thread of its process, which no task can set back, and
    so imports their modules there; torch alone takes seconds. The call therefore travels as an
    object that the background thread fetches.
    """

    def __init__(
        self, function: Callable[..., Any], *, num_cpus: float, num_gpus: float = 0
    ) -> None:
        """Nothing is started yet."""
        # One retry, for a worker that is killed; an exception would only come again.
        self._task = ray.remote(_fetch_and_call).options(
            name=function.__name__, num_cpus=num_cpus, num_gpus=num_gpus, max_retries=1
        )
        self._function = function

    def start(self, *args: Any) -> Any:
        """Start the task; the answer is Ray's reference to its result."""
        # In a list, since Ray would open what is an argument itself.
        return self._task.remote([ray.put((self._function, args))])


def _fetch_and_call(call: list[Any]) -> Any:
    return in_background(_call, *call)


def _call(reference: Any) -> Any:
    function, args = ray.get(reference)
    return function(*args)


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
