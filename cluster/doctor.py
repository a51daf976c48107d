"""`python -m cluster.doctor`: is this machine fit for a run? Exit 0, or a list of what to fix."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import stat
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import requests

from clippo_core.errors import ClippoError, StorageError
from cluster.dashboard import (
    ADDRESS_VARIABLES,
    RAY_RELEASE,
    Dashboard,
    Node,
    dashboard_address,
    token_path,
    use_token_mode,
)
from pipelines.datasets.sources import DATA_VARIABLE, data_cache
from pipelines.runtime.storage import Location

MIN_FREE_DISK_BYTES = 5 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30
MIN_SHARED_MEMORY_BYTES = 2**30
MIN_OBJECT_STORE_BYTES = 500 * 2**20
MIN_OPEN_FILES = 4096
MAX_CLOCK_SKEW_S = 60.0
RENDERER_START = "ray start --labels=clippo.role=renderer,ray-subcluster=renderer"
TRAINER_START = "ray start --labels=clippo.role=trainer --resources='{\"trainer\": 1}'"
#: None, or what is wrong and how to fix it.
Check = Callable[[], str | None]


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


def check_open_files() -> str | None:
    """Ray opens a file for every worker and every connection of one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return None
    return f"this shell may open {soft} files; expected {MIN_OPEN_FILES} or more: ulimit -n 65536"


def check_gpus() -> str | None:
    """Where there is a GPU: a torch that was built for it, and a driver that fits."""
    if not Path("/dev/nvidiactl").exists():
        return None
    import torch

    if torch.version.cuda is None:
        return (
            "there is a GPU, but torch was built for CPUs: pip install --force-reinstall torch "
            "torchvision, from an index with CUDA wheels"
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "there is a GPU, but CUDA_VISIBLE_DEVICES hides it: unset CUDA_VISIBLE_DEVICES"
    if not torch.cuda.is_available():
        return (
            f"there is a GPU, but torch (CUDA {torch.version.cuda}) cannot use it; compare the "
            "driver's version: nvidia-smi"
        )
    return None


def check_token() -> str | None:
    """A token that nobody else on this machine can read: it opens the cluster."""
    path = token_path()
    if os.environ.get("RAY_AUTH_TOKEN") or not path.exists() or not _is_readable_by_others(path):
        return None
    return f"others on this machine can read Ray's token: chmod 600 {path}"


def _is_readable_by_others(path: Path) -> bool:
    if not path.stat().st_mode & stat.S_IROTH:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.absolute().parents)


def check_tracking() -> str | None:
    """A tracking server that answers, and lets us in, where one is named."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or not uri.startswith("http"):
        return None
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{v}", "") for v in ("USERNAME", "PASSWORD"))
    try:
        place = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
        answer = requests.post(
            place, json={"max_results": 1}, auth=(name, password) if name else None, timeout=5
        )
    except (OSError, ValueError) as error:
        return f"MLflow at {uri} does not answer ({error}); start it, or unset MLFLOW_TRACKING_URI"
    if answer.status_code in (401, 403):
        return (
            f"MLflow at {uri} refuses ({answer.status_code}): export MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; where it speaks of the host, start it with --allowed-hosts"
        )
    return None if answer.ok else f"MLflow at {uri} answers {answer.status_code}: see its log"


def check_place(uri: str) -> str | None:
    """A folder or bucket that can be listed, written to, and cleaned up."""
    probe = Location.of(uri) / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        probe.remove_file()
    except (StorageError, OSError) as error:
        return str(error)
    return None


MACHINE_CHECKS: tuple[Check, ...] = (
    check_python,
    check_ray,
    check_memory,
    check_shared_memory,
    check_disk,
    check_open_files,
    check_gpus,
    check_data_cache,
    check_token,
    check_tracking,
)


def check_cluster(dashboard: Dashboard) -> str | None:
    """The cluster answers, lets us in, and runs the same Ray and Python on the same time."""
    ours = ".".join(map(str, sys.version_info[:2]))
    problems = []
    if not dashboard.ray_version().startswith(RAY_RELEASE):
        problems.append(
            f"the cluster runs Ray {dashboard.ray_version()}; this code needs {RAY_RELEASE}*: "
            "build its image from requirements.txt"
        )
    if not dashboard.python_version().startswith(f"{ours}."):
        problems.append(
            f"the cluster runs Python {dashboard.python_version()}, this machine {ours}: "
            "build its image for it, or use another here"
        )
    if (skew := dashboard.clock_skew_s()) > MAX_CLOCK_SKEW_S:
        problems.append(
            f"the cluster's clock is {skew:.0f} s off; buckets refuse such requests: timedatectl "
            "set-ntp true"
        )
    return "\n".join(problems) or None


def check_nodes(dashboard: Dashboard) -> str | None:
    """The machines carry the labels by which work finds them."""
    nodes = dashboard.nodes()
    print("    " + ", ".join(f"{n} {role}" for role, n in Counter(n.role for n in nodes).items()))
    problems = [problem for node in nodes for problem in node_problems(node, len(nodes))]
    if len(nodes) > 1 and not any(node.role == "renderer" for node in nodes):
        problems.append(f"no node draws: start one with {RENDERER_START}")
    return "\n".join(problems) or None


def node_problems(node: Node, num_nodes: int) -> list[str]:
    """What is wrong with one machine of a cluster."""
    problems, labels = [], node.labels
    is_renderer, subcluster = node.role == "renderer", labels.get("ray-subcluster")
    if node.is_head and num_nodes > 1 and node.resources.get("CPU", 0) > 0:
        problems.append(
            f"{node.host}: the head takes work, and a task could take its memory: ray start --head "
            "--num-cpus=0"
        )
    if is_renderer and subcluster != "renderer":
        problems.append(
            f"{node.host}: a renderer without the label ray-subcluster=renderer, by which Ray Data "
            f"counts CPUs: {RENDERER_START}"
        )
    if node.role == "trainer" and subcluster is not None:
        problems.append(
            f"{node.host}: a trainer with ray-subcluster={subcluster}; rendering would take its "
            f"CPUs: {TRAINER_START}"
        )
    if node.role == "unlabelled" and num_nodes > 1:
        problems.append(f"{node.host}: no role; {RENDERER_START}, or {TRAINER_START}")
    store = node.resources.get("object_store_memory", 0)
    if store < MIN_OBJECT_STORE_BYTES and not (node.is_head and num_nodes > 1):
        problems.append(
            f"{node.host}: an object store of {store / 2**20:.0f} MiB holds few batches: ray start "
            "--object-store-memory=2000000000, and room for it in /dev/shm"
        )
    return problems


def main(argv: Sequence[str] = ()) -> int:
    """Run all checks; 0 if nothing is to be fixed, else 4."""
    parser = argparse.ArgumentParser(prog="python -m cluster.doctor", description=__doc__)
    parser.add_argument("--address", help="of a cluster's dashboard; by default as in RAY_ADDRESS")
    parser.add_argument("--storage.root", dest="root", help="where runs are to lie")
    options = parser.parse_args(argv)
    use_token_mode()
    checks = [(check.__name__.removeprefix("check_"), check) for check in MACHINE_CHECKS]
    for uri in filter(None, (options.root, os.environ.get(DATA_VARIABLE))):
        if "://" in uri or uri == options.root:
            checks.append((uri, partial(check_place, uri)))
    if options.address or any(map(os.environ.get, ADDRESS_VARIABLES)):
        checks += [
            (name, partial(_ask_cluster, options.address, check))
            for name, check in (("cluster", check_cluster), ("nodes", check_nodes))
        ]
    return 4 if sum([_report(name, check) for name, check in checks]) else 0


def _ask_cluster(address: str | None, check: Callable[[Dashboard], str | None]) -> str | None:
    try:
        return check(Dashboard(dashboard_address(address)))
    except ClippoError as error:
        return str(error)


def _report(name: str, check: Check) -> bool:
    """Print a check's outcome; whether there is something to fix."""
    problem = check()
    print(f"{'ok' if problem is None else 'FIX':<4}{name}")
    for line in (problem or "").splitlines():
        print(f"      {line}")
    return problem is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
