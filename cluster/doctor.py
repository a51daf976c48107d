"""`python -m cluster.doctor`: is this machine fit for a run? Exit 0, or a list of what to fix."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.ingest.sources import data_cache

RAY_RELEASE = "2.60."
MIN_FREE_DISK_BYTES = 5 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30
MIN_SHARED_MEMORY_BYTES = 2**30


def check_python() -> str | None:
    """The Python that this project is tested with, or a later one."""
    if sys.version_info >= (3, 11):  # noqa: UP036 - told kindly, before a syntax error does
        return None
    return f"Python is {sys.version.split()[0]}; expected 3.11 or later"


def check_ray() -> str | None:
    """The Ray release that the requirements pin."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        return "Ray is not installed; run make install"
    if found.startswith(RAY_RELEASE):
        return None
    return f"Ray is {found}; this project is tested with {RAY_RELEASE}*: make install"


def check_memory() -> str | None:
    """Enough memory for a trainer, a few workers and Ray."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total >= MIN_MEMORY_BYTES:
        return None
    return f"the machine has {total / 2**30:.1f} GiB of memory; expected 4 or more"


def check_shared_memory() -> str | None:
    """Room for Ray's object store; in containers /dev/shm is often 64 MiB."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).total >= MIN_SHARED_MEMORY_BYTES:
        return None
    size = shutil.disk_usage(shared).total / 2**20
    return f"/dev/shm has {size:.0f} MiB; give the container 1 GiB (docker run --shm-size=1g)"


def check_disk() -> str | None:
    """Room for data, runs, and what Ray spills."""
    for folder in (Path.cwd(), Path("/tmp")):
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_DISK_BYTES:
            return f"{folder} has {free / 2**30:.1f} GiB free; expected 5 or more"
    return None


def check_data_cache() -> str | None:
    """A data cache that can be written to."""
    place = data_cache()
    if not place.is_local:
        return None
    folder = Path(place.uri)
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK):
        return None
    return f"the data cache {place.uri} cannot be written to; set CLIPPO_DATA to another folder"


def check_tracking() -> str | None:
    """A tracking server that answers, where one is named."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or not uri.startswith("http"):
        return None
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except (OSError, ValueError) as error:
        return f"MLflow at {uri} does not answer ({error}); start it, or unset MLFLOW_TRACKING_URI"
    return None


CHECKS: tuple[Callable[[], str | None], ...] = (
    check_python,
    check_ray,
    check_memory,
    check_shared_memory,
    check_disk,
    check_data_cache,
    check_tracking,
)


def main() -> int:
    """Run all checks; 0 if nothing is to be fixed, else 4."""
    problems = 0
    for check in CHECKS:
        problem = check()
        problems += problem is not None
        print(f"{'ok' if problem is None else 'FIX':<4}{check.__name__.removeprefix('check_')}")
        if problem is not None:
            print(f"      {problem}")
    return 4 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
