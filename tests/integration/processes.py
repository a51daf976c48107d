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
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *words],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_checkpoint(run_folder: Location, process: subprocess.Popen[str]) -> None:
    while not whole_checkpoints(run_folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
