"""Sessions of Ray: on the cluster that RAY_ADDRESS names, or started here for the while."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

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


@contextmanager
def ray_session(*, cpus: float, gpus: float = 0, may_wait: bool = False) -> Iterator[None]:
    """Connect to Ray or start it; a Ray that was started here is shut down at the end.

    Args:
        cpus: CPUs that the work needs. On this machine at least that many are declared, since they
            are Ray's bookkeeping and not cores; a cluster must have them.
        gpus: GPUs that the work needs, which must exist anywhere.
        may_wait: True if the caller waits for nodes itself.

    Raises:
        ConfigError: if there are fewer, unless the caller waits.
        StorageError: if Ray does not start or answer.
    """
    if ray.is_initialized():
        if not may_wait:
            check_resources(cpus, gpus)
        yield
        return
    address = cluster_address()
    with ray_environment(is_cluster=bool(address)):
        try:
            _init(address, cpus)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            where = f"the cluster at {address}" if address else "Ray on this machine"
            raise StorageError(f"{where} does not start or answer: {error}") from error
        _quiet_ray_data()
        try:
            if not may_wait:
                check_resources(cpus, gpus)
            yield
        finally:
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
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        ray.init(address, **options)
        return
    cores = len(os.sched_getaffinity(0))
    declared = max(cores, math.ceil(cpus))
    ray.init("local", num_cpus=declared, include_dashboard=False, **options)


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
