"""A cluster of one machine, as `ray start --head` makes it: token wanted, dashboard on loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from clippo_core.errors import StorageError
from cluster.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
_PORTS_OF_THEIR_OWN = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "min-worker-port",
    "max-worker-port",
)


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    Attributes:
        address: of its dashboard.
        token: the file of its token.
        ray_folder: where Ray keeps logs, packages and sockets.
        environment: of commands that speak to it.
    """

    address: str
    token: Path
    ray_folder: Path
    environment: dict[str, str]

    def submit(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m cluster.submit` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "cluster.submit", "--address", self.address, *words],
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
        )


@contextmanager
def local_cluster(folder: Path, *, data: Path) -> Iterator[LocalCluster]:
    """Start a cluster, and end it by its own processes."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = _environment(token)
    log = folder / "head.log"
    # Ray gives a node thirty seconds to start, which a machine with other work may not make.
    for _ in range(4):
        # Sockets have short names, which a test's own folder would not leave room for.
        ray_folder = Path(tempfile.mkdtemp(prefix="clippo-", dir="/tmp"))
        head, address = _start(ray_folder, environment | {"CLIPPO_DATA": str(data)}, log)
        try:
            if _is_up(Dashboard(address), token, head):
                yield LocalCluster(address, token, ray_folder, environment)
                return
        finally:
            _end(head)
            shutil.rmtree(ray_folder, ignore_errors=True)
    pytest.fail(log.read_text())


def _start(
    ray_folder: Path, environment: dict[str, str], log: Path
) -> tuple[subprocess.Popen[bytes], str]:
    port, dashboard, client = _free_ports(3)
    words = [
        *("ray", "start", "--head", "--block", "--num-cpus=3", f"--port={port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--temp-dir={ray_folder}"),
        "--object-store-memory=200000000",
        *(f"--{name}=0" for name in _PORTS_OF_THEIR_OWN),
    ]
    with log.open("w") as output:
        head = subprocess.Popen(
            words,
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return head, f"http://127.0.0.1:{dashboard}"


def _environment(token: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_AUTH", "AWS_", "CLIPPO"))}
    # The jobs' `python` is the one in the environment that the cluster was started in.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _is_up(dashboard: Dashboard, token: Path, head: subprocess.Popen[bytes]) -> bool:
    """Wait for the node to be there; False if Ray gave it up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        while head.poll() is None:
            with contextlib.suppress(StorageError):
                if dashboard.nodes():
                    return True
            time.sleep(0.2)
    return False


def _end(head: subprocess.Popen[bytes]) -> None:
    """Kill what `ray start` started, and nothing else; there is nothing in it to save."""
    started = [psutil.Process(head.pid)]
    started += started[0].children(recursive=True) if head.poll() is None else []
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
    psutil.wait_procs(started, timeout=10)
