"""Work that takes the CPU time that is left over."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray import cloudpickle

Result = TypeVar("Result")


class BackgroundTask:
    """A function as a Ray task that takes the CPU time that is left over, from its imports on.

    Ray imports the modules of a task's function and arguments in the main thread of the process,
    which no task can set back; torch alone takes seconds. So they travel pickled.
    """

    def __init__(self, function: Callable[..., Any], *, num_cpus: float) -> None:
        """Nothing is started yet."""
        # One retry, for a worker that is killed; an exception would only come again.
        self._task = ray.remote(_call).options(
            name=function.__name__, num_cpus=num_cpus, max_retries=1
        )
        self._function = function

    def start(self, *args: Any) -> Any:
        """Start the task; the answer is Ray's reference to its result."""
        return self._task.remote(cloudpickle.dumps((self._function, args)))


def _call(pickled: bytes) -> Any:
    return in_background(_unpickle_and_call, pickled)


def _unpickle_and_call(pickled: bytes) -> Any:
    function, args = cloudpickle.loads(pickled)
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
