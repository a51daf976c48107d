"""Workers that are forks: what they inherit, what they must not, and what happens without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import ActorDiedError

pytestmark = pytest.mark.ray

#: Starts a Ray of its own, so that nothing of it reaches the one of the other tests.
OWN_RAY = """
import logging, os
import ray
from pipelines.forking import forked_workers

SPOIL

with forked_workers() as runtime_env:
    ray.init(
        "local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR,
        log_to_driver=False, runtime_env=runtime_env,
    )
    def is_fork():
        import os, psutil
        return "pipelines.forking.server" in psutil.Process(os.getppid()).cmdline()
    print("fork" if ray.get(ray.remote(is_fork).remote()) else "no fork")
    ray.shutdown()
"""


@ray.remote(num_cpus=1)
class Worker:
    """A process of its own."""

    def found(self) -> dict[str, Any]:
        """What a test wants to know of it."""
        import numpy as np
        from ray import WorkerID

        parent = psutil.Process(os.getppid())
        return {
            "pid": os.getpid(),
            "is_fork": "pipelines.forking.server" in parent.cmdline(),
            "modules": list(sys.modules),
            "folder": str(Path.cwd()),
            "random": (WorkerID.from_random().hex(), float(np.random.rand())),
            "group": os.getpgrp(),
            "setting": os.environ.get("CLIPPO_TEST_SETTING"),
        }


def threads() -> int:
    import torch

    return torch.get_num_threads()


@pytest.mark.usefixtures("local_ray")
def test_workers_have_the_modules_of_the_server_and_random_numbers_of_their_own() -> None:
    workers = [Worker.remote() for _ in range(3)]
    found = ray.get([worker.found.remote() for worker in workers])
    assert all(one["is_fork"] and "torch" in one["modules"] for one in found)
    assert {one["folder"] for one in found} == {str(Path.cwd())}
    for number in range(2):
        assert len({one["random"][number] for one in found}) == 3
    # A group of its own, by which Ray ends a worker with what it started; not the terminal's.
    assert len({one["group"] for one in found} | {os.getpgrp()}) == 4


@pytest.mark.usefixtures("local_ray")
def test_a_worker_has_the_environment_that_it_was_asked_for() -> None:
    worker = Worker.options(runtime_env={"env_vars": {"CLIPPO_TEST_SETTING": "here"}}).remote()
    found = ray.get(worker.found.remote())
    assert found["is_fork"]
    assert found["setting"] == "here"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("name", "value"), [("PYTHONPATH", str(Path.cwd())), ("GOMP_SPINCOUNT", "7")]
)
def test_what_imports_read_in_another_way_is_no_fork(name: str, value: str) -> None:
    worker = Worker.options(runtime_env={"env_vars": {name: value}}).remote()
    assert not ray.get(worker.found.remote())["is_fork"]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_task_has_as_many_threads_as_cpus(cpus: int) -> None:
    assert ray.get(ray.remote(threads).options(num_cpus=cpus).remote()) == cpus


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_fork_is_a_dead_worker_and_leaves_nothing(number: int) -> None:
    worker = Worker.remote()
    found = ray.get(worker.found.remote())
    waiting = [one for one in psutil.process_iter() if is_waiting(one, found["group"])]
    assert len(waiting) == 1
    os.kill(found["pid"], number)
    with pytest.raises(ActorDiedError):
        ray.get(worker.found.remote())
    wait_until(lambda: not waiting[0].is_running() and not psutil.pid_exists(found["pid"]))


@pytest.mark.usefixtures("local_ray")
def test_a_fork_ends_with_the_process_that_asked_for_it() -> None:
    worker = Worker.remote()
    found = ray.get(worker.found.remote())
    (waiting,) = (one for one in psutil.process_iter() if is_waiting(one, found["group"]))
    waiting.kill()
    wait_until(lambda: not psutil.pid_exists(found["pid"]))


def wait_until(is_so: Callable[[], bool], *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_waiting(process: psutil.Process, group: int) -> bool:
    try:
        is_script = any(part.endswith("forking/setup_worker.py") for part in process.cmdline())
        return is_script and os.getpgid(process.pid) == group
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("spoil", "expected", "is_told"),
    [
        ("", "fork", False),
        ("os.environ['CLIPPO_FORK_WORKERS'] = '0'", "no fork", False),
        # A server that does not start: there is no such module.
        ("import pipelines.forking as forking; forking.__package__ = 'nowhere'", "no fork", True),
    ],
)
def test_without_a_server_workers_start_as_ray_starts_them(
    spoil: str, expected: str, is_told: bool
) -> None:
    script = OWN_RAY.replace("SPOIL", spoil)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.strip() == expected, ended.stderr
    assert ("the process that forks them ended" in ended.stderr) == is_told


def test_nothing_asks_cuda_before_a_fork() -> None:
    """A process that has asked once can have no forks that use a GPU."""
    script = """
import importlib, torch
from pipelines.forking.server import MODULES
def ask(*_, **__):
    raise AssertionError("CUDA was asked")
names = [name for name in dir(torch._C) if name.startswith("_cuda_")]
for place, name in [(torch._C, n) for n in names] + [
    (torch.cuda, n) for n in ("is_available", "device_count", "_lazy_init", "init")
]:
    setattr(place, name, ask)
for module in MODULES:
    importlib.import_module(module)
try:
    torch.cuda.is_available()
except AssertionError:
    print("patched")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout == "patched\n", ended.stderr
