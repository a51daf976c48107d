"""An MLflow server in a process of its own, which may be killed and started again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil


class MlflowServer:
    """On SQLite, with artifacts that go through it; at the same port after every start."""

    def __init__(self, folder: Path, *, database: Path | None = None) -> None:
        self.folder = folder
        self._database = folder / "server.db" if database is None else database
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [
            *("server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self._database}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while not self.answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.read() == b"OK"
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is None:
            return
        family = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            process.kill()
        self._process.wait()
        self._process = None
