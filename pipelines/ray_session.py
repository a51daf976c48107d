"""A Ray to work with: the cluster that RAY_ADDRESS names, or one on this machine for the while."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from clippo_core.errors import ConfigError, StorageError

#: Ray's chatter, and what it would send home. Set before Ray starts; a person's own values stay.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


@contextmanager
def ray_session(*, cpus: float, gpus: int = 0) -> Iterator[None]:
    """Connect or start; what was started here is shut down at the end.

    Args:
        cpus: that the work needs. On this machine at least so many are declared, since they are
            Ray's bookkeeping and not cores; a cluster must have them.
        gpus: that the work needs.

    Raises:
        ConfigError: if there are fewer.
        StorageError: if it does not answer.
    """
    if ray.is_initialized():
        check_resources(cpus, gpus)
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    try:
        _init(address, cpus)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        where = f"the cluster at {address}" if address else "Ray on this machine"
        raise StorageError(f"{where} does not start or answer: {error}") from error
    _quiet_ray_data()
    try:
        check_resources(cpus, gpus)
        yield
    finally:
        ray.shutdown()


def _init(address: str | None, cpus: float) -> None:
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        ray.init(address, **options)
        return
    cores = len(os.sched_getaffinity(0))
    declared = max(cores, math.ceil(cpus))
    ray.init("local", num_cpus=declared, include_dashboard=False, **options)


def _quiet_ray_data() -> None:
    """Keep Ray Data's progress notes out of the terminal; its log file gets them all the same."""
    import ray.data

    for handler in logging.getLogger(ray.data.__name__).handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def check_resources(cpus: float, gpus: int) -> None:
    """Make sure that the work fits; without this, it would wait for ever and say nothing.

    Raises:
        ConfigError: naming what to lower.
    """
    resources = ray.cluster_resources()
    if resources.get("GPU", 0) < gpus:
        raise ConfigError(
            f"there are {resources.get('GPU', 0):g} GPUs, but the run needs {gpus}, one per rank; "
            "lower scaling.num-ranks, or train on CPUs with --scaling.no-use-gpu"
        )
    if resources.get("CPU", 0) < cpus:
        raise ConfigError(
            f"the cluster has {resources.get('CPU', 0):g} CPUs, but the run needs {cpus:g}: "
            "num_ranks x cpus_per_rank, one render task (renderer_cpus), and one evaluation "
            "(evaluation.cpus); lower these or add machines"
        )
