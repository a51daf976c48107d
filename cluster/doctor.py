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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import requests

from clippo_core.errors import ClippoError, StorageError
from cluster.dashboard import (
    ADDRESS_VARIABLES,
    Dashboard,
    Node,
    dashboard_address,
    token_path,
    use_token_mode,
)
from cluster.package import ROOT
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
#: Yields each thing that is wrong, and how to fix it.
Check = Callable[[], Iterator[str]]


def check_python() -> Iterator[str]:
    """Look for the Python that this project is tested with, or a later one."""
    if sys.version_info < (3, 11):  # noqa: UP036 - told kindly, before a syntax error does
        yield f"Python is {sys.version.split()[0]}; expected 3.11 or later"


def check_ray() -> Iterator[str]:
    """Look for a Ray that requirements.txt admits."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        yield "Ray is not installed; run make install"
        return
    from packaging.requirements import Requirement  # here, because it comes with Ray

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = next(Requirement(line) for line in lines if line.startswith("ray["))
    if found not in wanted.specifier:
        yield f"Ray is {found}; requirements.txt asks for {wanted.specifier}: make install"


def check_memory() -> Iterator[str]:
    """Look for enough memory for a trainer, a few workers and Ray."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < MIN_MEMORY_BYTES:
        yield f"the machine has {total / 2**30:.1f} GiB of memory; expected 4 or more"


def check_shared_memory() -> Iterator[str]:
    """Look for room for Ray's object store; in containers /dev/shm is often 64 MiB."""
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < MIN_SHARED_MEMORY_BYTES:
        yield (
            f"/dev/shm has {size / 2**20:.0f} MiB; give the container 1 GiB (docker run "
            "--shm-size=1g)"
        )


def check_disk() -> Iterator[str]:
    """Look for room for data, runs, and what Ray spills to disk."""
    for folder in (Path.cwd(), Path("/tmp")):
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_DISK_BYTES:
            yield f"{folder} has {free / 2**30:.1f} GiB free; expected 5 or more"


def check_open_files() -> Iterator[str]:
    """Look at the limit of open files: Ray opens some for each worker and each connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        yield (
            f"this shell may open {soft} files; expected {MIN_OPEN_FILES} or more: ulimit -n 65536"
        )


def check_gpus() -> Iterator[str]:
    """Look for a torch and a driver that fit the GPU, where there is one."""
    if not Path("/dev/nvidiactl").exists():
        return
    import torch

    if torch.version.cuda is None:
        yield (
            "there is a GPU, but torch was built for CPUs: pip install --force-reinstall torch "
            "torchvision, from an index with CUDA wheels"
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield "there is a GPU, but CUDA_VISIBLE_DEVICES hides it: unset CUDA_VISIBLE_DEVICES"
    elif not torch.cuda.is_available():
        yield (
            f"there is a GPU, but torch (CUDA {torch.version.cuda}) cannot use it; compare the "
            "driver's version: nvidia-smi"
        )


def check_data_cache() -> Iterator[str]:
    """Look for a data cache that can be written to."""
    place = data_cache()
    if not place.is_local:
        return
    folder = next(f for f in (Path(place.uri), *Path(place.uri).parents) if f.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield f"the data cache {place.uri} cannot be written to; set CLIPPO_DATA to another folder"


def check_token() -> Iterator[str]:
    """Make sure that nobody else on this machine can read the token: it opens the cluster."""
    path = token_path()
    if os.environ.get("RAY_AUTH_TOKEN") or not path.exists():
        return
    # Others read a file if they may read it, and may enter all folders above it.
    is_readable = path.stat().st_mode & stat.S_IROTH
    if is_readable and all(f.stat().st_mode & stat.S_IXOTH for f in path.absolute().parents):
        yield f"others on this machine can read Ray's token: chmod 600 {path}"


def check_tracking() -> Iterator[str]:
    """Ask the tracking server, where one is named, if it answers and lets us in."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or not uri.startswith("http"):
        return
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{v}", "") for v in ("USERNAME", "PASSWORD"))
    place = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    login = (name, password) if name else None
    try:
        answer = requests.post(place, json={"max_results": 1}, auth=login, timeout=5)
    except (OSError, ValueError) as error:
        yield f"MLflow at {uri} does not answer ({error}); start it, or unset MLFLOW_TRACKING_URI"
        return
    if answer.status_code in (401, 403):
        yield (
            f"MLflow at {uri} refuses ({answer.status_code}): export MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; where it speaks of the host, start it with --allowed-hosts"
        )
    elif not answer.ok:
        yield f"MLflow at {uri} answers {answer.status_code}: see its log"


def check_place(uri: str) -> Iterator[str]:
    """Write a file to a folder or bucket, and remove it."""
    probe = Location.of(uri) / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        probe.remove_file()
    except (StorageError, OSError) as error:
        yield str(error)


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


def check_cluster(dashboard: Dashboard) -> Iterator[str]:
    """Ask the cluster for its Ray, Python and time, which must be those of this machine."""
    if mismatch := dashboard.release_mismatch():
        yield mismatch
    ours, theirs = ".".join(map(str, sys.version_info[:2])), dashboard.python_version()
    if not theirs.startswith(f"{ours}."):
        yield (
            f"the cluster runs Python {theirs}, this machine {ours}: build its image for it, or "
            "use another here"
        )
    if (skew := dashboard.clock_skew_s()) > MAX_CLOCK_SKEW_S:
        yield (
            f"the cluster's clock is {skew:.0f} s off; buckets refuse such requests: timedatectl "
            "set-ntp true"
        )


def check_nodes(dashboard: Dashboard) -> Iterator[str]:
    """Look at each machine for the labels by which work finds it."""
    nodes = dashboard.nodes()
    print("    " + ", ".join(f"{n} {role}" for role, n in Counter(n.role for n in nodes).items()))
    for node in nodes:
        yield from node_problems(node, len(nodes))
    if len(nodes) > 1 and not any(node.role == "renderer" for node in nodes):
        yield f"no node draws: start one with {RENDERER_START}"


def node_problems(node: Node, num_nodes: int) -> Iterator[str]:
    """Yield the faults of one machine of a cluster."""
    subcluster, is_alone = node.labels.get("ray-subcluster"), num_nodes == 1
    if node.is_head and not is_alone and node.resources.get("CPU", 0) > 0:
        yield (
            f"{node.host}: the head takes work, and a task could take its memory: ray start --head "
            "--num-cpus=0"
        )
    if node.role == "renderer" and subcluster != "renderer":
        yield (
            f"{node.host}: a renderer without the label ray-subcluster=renderer, by which Ray Data "
            f"counts CPUs: {RENDERER_START}"
        )
    if node.role == "trainer" and subcluster is not None:
        yield (
            f"{node.host}: a trainer with ray-subcluster={subcluster}; rendering would take its "
            f"CPUs: {TRAINER_START}"
        )
    if node.role == "unlabelled" and not is_alone:
        yield f"{node.host}: no role; {RENDERER_START}, or {TRAINER_START}"
    store = node.resources.get("object_store_memory", 0)
    if store < MIN_OBJECT_STORE_BYTES and (is_alone or not node.is_head):
        yield (
            f"{node.host}: an object store of {store / 2**20:.0f} MiB holds few batches: ray start "
            "--object-store-memory=2000000000, and room for it in /dev/shm"
        )


def main(argv: Sequence[str] = ()) -> int:
    """Run all checks; return 0 if nothing is to be fixed, else 4."""
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
        checks.append(("cluster", partial(_ask_cluster, options.address, check_cluster)))
        checks.append(("nodes", partial(_ask_cluster, options.address, check_nodes)))
    is_fit = True
    for name, check in checks:
        problems = "\n".join(check()).splitlines()
        is_fit = is_fit and not problems
        print("\n      ".join([f"{'FIX' if problems else 'ok':<4}{name}", *problems]))
    return 0 if is_fit else 4


def _ask_cluster(address: str | None, check: Callable[[Dashboard], Iterator[str]]) -> Iterator[str]:
    try:
        yield from check(Dashboard(dashboard_address(address)))
    except (ClippoError, ModuleNotFoundError) as error:  # the second without Ray
        yield str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
