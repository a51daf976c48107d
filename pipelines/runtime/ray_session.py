"""Sessions of Ray: on the cluster that RAY_ADDRESS names, or started here for the while."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.exceptions

from clippo_core.errors import ConfigError, StorageError
from pipelines.config.settings import RunConfig

T = TypeVar("T")

#: Variables that silence Ray, and keep it from sending usage data home.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}

#: Variables that set how soon Ray notices faults; its own values suit other runs.
_RECOVERY = {
    # After a node died, Ray may still count on it; the first group of ranks then waits for a place
    # that is gone, for 60 s by default, before it is placed anew.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # A spot node is announced 30 to 120 s before it goes; 5 s are much of that.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    # Ranks agree on a notice of preemption at a barrier of Ray's, which waits for ever by default.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
}

#: Variables for a Ray that is started on this machine for the session.
_ALONE = {
    # This machine is not preempted with notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


_EXCEPTION_LINE = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b.*")
#: Folder of Ray's own logs on this machine.
RAY_LOGS = "/tmp/ray/session_latest/logs"
#: How often Ray's processes are looked for, and how long they may be away. Ray itself gives up a
#: head after 60 s, and a node's process after some 10.
_LOOK_EVERY_S, _HEAD_MAY_BE_AWAY_S, _NODE_MAY_BE_AWAY_S = 2, 45, 3


@contextmanager
def ray_session(
    *, cpus: float, gpus: float = 0, may_wait: bool = False, advice: str = ""
) -> Iterator[None]:
    """Connect to Ray or start it; a Ray that was started here is shut down at the end.

    Args:
        cpus: CPUs that the work needs. On this machine at least that many are declared, since they
            are Ray's bookkeeping and not cores; a cluster must have them.
        gpus: GPUs that the work needs, which must exist anywhere.
        may_wait: True if the caller waits for nodes itself.
        advice: what a person can do if Ray fails meanwhile.

    Raises:
        ConfigError: if there are fewer, unless the caller waits.
        StorageError: if Ray does not start or answer, or one of its processes dies.
    """
    if ray.is_initialized():
        if not may_wait:
            check_resources(cpus, gpus)
        yield
        return
    address = cluster_address()
    with ray_environment(is_cluster=bool(address)):
        _init(address, cpus)
        _quiet_ray_data()
        watch = _Watch(advice)
        try:
            if not may_wait:
                check_resources(cpus, gpus)
            yield
        except BrokenPipeError:
            # The terminal's, as behind `| head`; Ray's broken pipes are plain `OSError`s.
            raise
        except (ray.exceptions.RayError, OSError) as error:
            raise StorageError(
                f"{telling_line(error)}; Ray's logs: {RAY_LOGS}{advice and chr(10)}{advice}"
            ) from error
        finally:
            watch.stop()
            ray.shutdown()


def cluster_address() -> str | None:
    """Return the address of the running cluster, or None where a command starts its own."""
    return os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_environment(*, is_cluster: bool) -> Iterator[None]:
    """Set the variables that Ray reads for the while; a person's own values stay."""
    wanted = _QUIET | _RECOVERY | ({} if is_cluster else _ALONE)
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def needed_cpus(config: RunConfig) -> float:
    """Return the CPUs that Ray must declare on this machine for the run not to wait for ever."""
    scaling = config.scaling
    evaluation = config.evaluation.cpus if config.evaluation.tasks else 0.0
    renderers = scaling.min_renderers * scaling.renderer_cpus
    return scaling.num_ranks * scaling.cpus_per_rank + renderers + evaluation


def _init(address: str | None, cpus: float) -> None:
    """Connect to Ray or start it; on a machine under load, one more attempt often does.

    Raises:
        StorageError: if it does not start or answer.
    """
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not address:
        cores = len(os.sched_getaffinity(0))
        options |= {"num_cpus": max(cores, math.ceil(cpus)), "include_dashboard": False}
    for attempts_left in (1, 0):
        try:
            ray.init(address or "local", **options)
            return
        except (ray.exceptions.RayError, RuntimeError, OSError, ValueError) as error:
            ray.shutdown()
            if not attempts_left:
                where = f"the cluster at {address}" if address else "Ray on this machine"
                raise StorageError(
                    f"{where} does not start or answer: {telling_line(error)}; its logs: {RAY_LOGS}"
                ) from error


def telling_line(error: BaseException) -> str:
    """Return a line out of what Ray says of a failure, which may go over pages.

    It is the first one, with the last that names an exception: that of the process that failed.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    causes = [line for line in lines[1:] if _EXCEPTION_LINE.match(line)]
    return " ".join([f"{type(error).__name__}: {lines[0][:200]}", *(c[:300] for c in causes[-1:])])


class _Watch:
    """Ends this process, in a line of its own, when the Ray below it is gone.

    Ray would end it too, a few seconds later, with pages of its own and the exit code of a bug; the
    main thread then waits in a call of Ray's, which no exception reaches.
    """

    def __init__(self, advice: str) -> None:
        """Begin to look whether Ray's head, and its process on this node, can be connected to."""
        context = ray.get_runtime_context()
        node = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
        raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        self._places = {
            "head": (context.gcs_address, _HEAD_MAY_BE_AWAY_S),
            "process on this node": (raylet, _NODE_MAY_BE_AWAY_S),
        }
        self._advice, self._ended = advice, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _watch(self) -> None:
        seen = dict.fromkeys(self._places, time.monotonic())
        while not self._ended.wait(_LOOK_EVERY_S):
            for name, (address, patience_s) in self._places.items():
                host, _, port = address.rpartition(":")
                try:
                    socket.create_connection((host, int(port)), timeout=_LOOK_EVERY_S).close()
                    seen[name] = time.monotonic()
                except OSError as error:
                    if time.monotonic() - seen[name] > patience_s:
                        self._end(f"Ray's {name} ({address}) does not answer any more: {error}")

    def _end(self, problem: str) -> None:
        if not self._ended.is_set():
            sys.stderr.write(f"\nStorageError: {problem}; its logs: {RAY_LOGS}\n{self._advice}\n")
            sys.stderr.flush()
            os._exit(StorageError.exit_code)


def _quiet_ray_data() -> None:
    """Keep Ray Data's progress notes out of the terminal; its log file still gets them."""
    import ray.data

    for handler in logging.getLogger(ray.data.__name__).handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def check_resources(cpus: float, gpus: float = 0) -> None:
    """Make sure that the work fits; otherwise it would wait for ever and say nothing.

    Raises:
        ConfigError: if the cluster is too small; names what to lower.
    """
    found = ray.cluster_resources()
    for name, option, wanted in (("CPU", "--cpus", cpus), ("GPU", "--gpus", gpus)):
        if found.get(name, 0) < wanted:
            raise ConfigError(
                f"the cluster has {found.get(name, 0):g} {name}s, but {wanted:g} are needed; ask "
                f"for fewer ({option}), or add machines"
            )
