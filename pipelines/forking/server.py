"""Imports what Ray's workers need, and forks them: `python -m pipelines.forking.server SOCKET`.

Python's own `multiprocessing.forkserver` forks a process with preloaded modules in the same way.
This one answers `setup_worker.py`, until its standard input ends.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines.heap import use_one_heap

#: What workers of a run import, the soonest needed first; workers that are asked for meanwhile are
#: forked between two of them.
MODULES = (
    "ray._private.workers.default_worker",
    "ray.data",
    "ray.train",
    "pipelines.training.monitor",
    "ray.train.v2._internal.execution.controller.controller",
    "ray.train.v2._internal.data_integration.dataset_manager",
    "ray.data._internal.iterator.stream_split_iterator",
    "pipelines.stream.batch",
    "torch",
    "ray.train.torch",
    "pipelines.training.trainer",
    "pipelines.training.rank",
    "pipelines.evaluation.tasks",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
)
#: Variables that imports read, so that no fork can have others than this process.
READ_BY_IMPORTS = (
    "RAY_JOB_ID",
    "RAY_AUTH_MODE",
    "PYTHONPATH",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
_MAX_REQUEST_BYTES = 1 << 20
_F_SETSIG = 10


@dataclass(frozen=True)
class Request:
    """A worker, as Ray would have started it."""

    connection: socket.socket
    files: list[int]
    """Standard input, output and error; a pipe that ends with the process that asked."""
    arguments: list[str]
    environ: dict[str, str]
    folder: str
    group: int
    blocked_signals: list[int]


def main() -> None:
    """Serve; a fork leaves the loop, and becomes a worker."""
    # Workers watch the process with this id, and end with it. Ray's is not known yet, and its C++
    # part reads this once; `setup_worker.py` watches that.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody waits for forks that end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    use_one_heap()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen(256)
    request = serve(listener)
    listener.close()
    become_worker(request)


def serve(listener: socket.socket) -> Request:
    """Fork a process for each request; returns in the fork, with the request."""
    for module in MODULES:
        _import(module)
        if module == "pipelines.stream.batch":
            _load_compiled_functions()
        # Objects that exist now outlive the forks; looking at them would copy their pages.
        gc.freeze()
        request = _fork_for_requests(listener, timeout_s=0)
        if request is not None:
            return request
    while True:
        request = _fork_for_requests(listener, timeout_s=None)
        if request is not None:
            return request


def _import(name: str) -> None:
    """Import a module without drawing one of Ray's random numbers.

    Ray seeds their generator at its first use; forks of a process that has used it would give the
    same ids to different things, such as placement groups.
    """
    import ray.actor

    with mock.patch.object(ray.actor, "ActorClassID", _ActorClassIDs):
        importlib.import_module(name)


def _load_compiled_functions() -> None:
    """The first call of one in a process takes numba a second, whichever it is."""
    from clippo_core.config import RenderConfig
    from clippo_core.rendering import TextRenderer

    TextRenderer(RenderConfig(image_size_px=32)).render_batch(["a"])


class _ActorClassIDs:
    """Stands for Ray's class of that name: makes ids of actor classes by another generator."""

    @staticmethod
    def from_random() -> Any:
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def _fork_for_requests(listener: socket.socket, timeout_s: float | None) -> Request | None:
    ready, _, _ = select.select([listener, 0], [], [], timeout_s)
    if 0 in ready:
        sys.exit(0)
    if not ready:
        return None
    connection, _ = listener.accept()
    body, files, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 4)
    # Nothing comes from a process that was ended before it asked.
    if body:
        request = Request(connection, list(files), **json.loads(body))
        if _can_be_forked(request) and os.fork() == 0:
            return request
    connection.close()
    for file in files:
        os.close(file)
    return None


def _can_be_forked(request: Request) -> bool:
    """Whether the imports that this process has made are those that the worker would make."""
    context, _ = _context_of(request)
    wanted = request.environ | context.env_vars
    is_same = all(wanted.get(name) == os.environ.get(name) for name in READ_BY_IMPORTS)
    is_plain = not (context.command_prefix or context.override_worker_entrypoint)
    return is_same and is_plain and context.py_executable == sys.executable


def _context_of(request: Request) -> tuple[Any, list[str]]:
    """The runtime environment of the worker, and its command line."""
    from ray._private.runtime_env.context import RuntimeEnvContext

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    found, command = parser.parse_known_args(request.arguments)
    return RuntimeEnvContext.deserialize(found.serialized_runtime_env_context), command


def become_worker(request: Request) -> None:
    """Take over all that the process which asked had, and run Ray's worker."""
    from ray._private.utils import update_envs

    context, command = _context_of(request)
    command = command[next(i for i, one in enumerate(command) if not one.startswith("-")) :]
    os.setpgid(0, request.group)
    *standard, ending = request.files
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    _die_with(ending)
    os.environ.clear()
    os.environ.update(request.environ)
    update_envs(context.env_vars)
    os.chdir(request.folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
    import numpy as np

    # The generator that libraries share must differ between forks.
    np.random.seed()
    _limit_threads_as_ray_does()
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    # Closed with the process, which tells the one that asked.
    request.connection.send(b"y")
    runpy.run_path(command[0], run_name="__main__")


def _die_with(pipe: int) -> None:
    """Have the kernel kill this process once the other end of a pipe is closed."""
    os.set_inheritable(pipe, False)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_threads_as_ray_does() -> None:
    """Ray sets a variable that libraries read when they are imported; these have been."""
    import ray._private.utils as utils
    from threadpoolctl import threadpool_limits

    set_variable = utils.set_omp_num_threads_if_unset

    def set_and_apply() -> bool:
        is_set = set_variable()
        if is_set:
            import torch

            threads = int(os.environ["OMP_NUM_THREADS"])
            threadpool_limits(threads)
            torch.set_num_threads(threads)
        return is_set

    utils.set_omp_num_threads_if_unset = set_and_apply


if __name__ == "__main__":
    main()
