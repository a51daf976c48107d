"""Commands in processes of their own, as a person starts them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location

ROOT = Path(__file__).parents[2]


def start_command(
    *words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python -m pipelines` as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *words],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_checkpoint(run_folder: Location, process: subprocess.Popen[str]) -> None:
    while not whole_checkpoints(run_folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def run_command(
    *words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout_s: float = 400
) -> str:
    """Run `python -m pipelines` to its end, which must be a good one; return what it printed."""
    process = start_command(*words, cwd=cwd, env=env)
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output
