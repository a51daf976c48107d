"""A page as a person starts it, and a client of it that is no browser."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.processes import ROOT, start_command


@dataclass
class ServedPage:
    """The running command, and where it listens."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body; `path` goes out as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def json(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        status, _, content = self.ask(path, body, **headers)
        return status, json.loads(content)

    def search(self, text: str, *, count: int = 24) -> tuple[int, Any]:
        return self.json(f"/api/search/text?count={count}", json.dumps({"text": text}).encode())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as a person or a scheduler does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def start_page(*words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> ServedPage:
    """Start `serve` on a free port and wait for the address."""
    process = start_command("serve", *words, "--port", "0", cwd=cwd, env=env)
    try:
        said = _lines_up_to_address(process)
    except BaseException:
        # Such as a test that takes too long: nothing is left behind.
        process.kill()
        process.communicate()
        raise
    return ServedPage(process, int(said[-1].rstrip("/").rpartition(":")[2]), said)


def _lines_up_to_address(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith("http"):
            return said
    raise AssertionError("\n".join(said))
