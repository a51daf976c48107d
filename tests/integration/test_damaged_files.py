"""Ten thousand damaged files of all formats: nothing but values, rejects and errors of our own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.processes import ROOT


@pytest.mark.slow
def test_ten_thousand_damaged_files():
    """In a process of its own, whose memory has a bound."""
    words = [sys.executable, "-m", "tests.fuzzing", "--files", "10000", "--seed", "7"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert ended.stdout.splitlines()[-1] == "10000 files, 0 failures"
