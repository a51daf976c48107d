"""`python -m cluster.job`: what is tried again goes on, if it is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from clippo_core.config import to_json
from cluster import job
from pipelines.config.resolution import RUN_FILE, resolve
from pipelines.training import run as training_run


@pytest.fixture
def begun(make_config, tmp_path: Path) -> list[str]:
    """The command of a run that has begun."""
    config = make_config()
    (tmp_path / "run.json").write_text(to_json(config))
    resolved = resolve(config)
    (resolved.run / RUN_FILE).write_bytes(to_json(resolved.config).encode())
    return ["train", str(tmp_path / "run.json")]


def test_a_job_that_is_tried_again_goes_on_with_its_run(begun, monkeypatch: pytest.MonkeyPatch):
    resumed = []
    monkeypatch.setattr("pipelines.cli.output.print_summary", lambda summary: None)
    monkeypatch.setattr(
        training_run,
        "train",
        lambda resolved, is_resumed: resumed.append((resolved.run.name, is_resumed)),
    )
    assert job.main(begun) == 0
    assert resumed == [("run", True)]


def test_another_run_of_the_same_name_is_refused(begun, capsys):
    assert job.main([*begun, "--train.seed", "7"]) == 2
    assert "cannot change train.seed" in capsys.readouterr().err


def test_a_job_works_in_the_folder_that_it_is_told(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert job.main(["--folder", "there", "render", "a", "--out", "a.png"]) == 0
    assert (tmp_path / "there" / "a.png").exists()
