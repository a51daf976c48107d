"""What all tests share: a quiet environment, and no way to the network or a person's own files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports Ray or torch: both read these once.
os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "120",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    }
)
if not os.environ.get("CLIPPO_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

REFERENCE = Path(__file__).parent / "parity" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Arrays made with the authors' code; tests/parity/reference/README.md says how."""
    return REFERENCE


@pytest.fixture(autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that a test names go to an empty cache of its own."""
    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path_factory.getbasetemp() / "data"))
