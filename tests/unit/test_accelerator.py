from __future__ import annotations

import subprocess
import sys

import pytest
from torch.utils import backend_registration


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices that are written in Python",
)
def test_steps_neither_mix_devices_nor_wait_for_values():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.unit.pretended_accelerator"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "scores"
