"""`python -m cluster.doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import doctor


def test_it_names_every_check_and_what_to_fix(capsys, monkeypatch: pytest.MonkeyPatch):
    def check_that_fails() -> str | None:
        return "turn it off and on again"

    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, check_that_fails))
    assert doctor.main() == 4
    assert capsys.readouterr().out == (
        "ok  python\nFIX that_fails\n      turn it off and on again\n"
    )
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, doctor.check_ray))
    assert doctor.main() == 0


def test_a_tracking_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    assert doctor.check_tracking() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer" in (doctor.check_tracking() or "")


def test_a_cache_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path / "file" / "cache"))
    assert "set CLIPPO_DATA" in (doctor.check_data_cache() or "")
