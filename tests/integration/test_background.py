"""Work out of left-over CPU time, in processes of Ray."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import ray

from pipelines.background import BackgroundTask

pytestmark = pytest.mark.ray


class OpenedIn:
    """Remembers the scheduling class of the thread that opened it, and so imported its module."""

    scheduler: int | None = None

    def __setstate__(self, _state: object) -> None:
        self.scheduler = os.sched_getscheduler(0)

    def __getstate__(self) -> dict[str, str]:
        return {"not": "empty, or it would not be set"}


def test_a_background_task_yields_from_the_moment_its_arguments_are_opened(local_ray):
    def look(argument: OpenedIn) -> tuple[int | None, int]:
        return argument.scheduler, os.sched_getscheduler(0)

    found = ray.get(BackgroundTask(look, num_cpus=0.1).start(OpenedIn()))
    assert found == (os.SCHED_IDLE, os.SCHED_IDLE)


def test_other_work_keeps_the_usual_priority(local_ray):
    """Left-over time is left over only beside threads that weigh much more."""

    def look() -> tuple[int, int]:
        return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)

    task = ray.remote(look).options(num_cpus=0.1)  # pyright: ignore
    assert ray.get(task.remote()) == (os.getpriority(os.PRIO_PROCESS, 0), os.SCHED_OTHER)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="set on x86 alone")
def test_threads_of_workers_do_not_keep_idle_cores_for_long(local_ray):
    """OpenMP reads how long they do when it is loaded: what counts is how the process began."""

    def look() -> list[bytes]:
        return Path("/proc/self/environ").read_bytes().split(b"\0")

    task = ray.remote(look).options(num_cpus=0.1)  # pyright: ignore
    assert b"GOMP_SPINCOUNT=50000" in ray.get(task.remote())
