"""`python -m cluster.doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster import doctor
from tests.deployment.dashboards import HEAD, TOKEN, dashboard, node


def test_it_names_every_check_and_what_to_fix(capsys, monkeypatch: pytest.MonkeyPatch):
    def check_that_fails() -> Iterator[str]:
        yield "turn it off and on again"

    monkeypatch.setattr(doctor, "MACHINE_CHECKS", (doctor.check_python, check_that_fails))
    assert doctor.main() == 4
    assert capsys.readouterr().out == (
        "ok  python\nFIX that_fails\n      turn it off and on again\n"
    )
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", (doctor.check_python, doctor.check_ray))
    assert doctor.main() == 0


def test_a_ray_that_the_requirements_do_not_admit_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.13.0")
    assert "Ray is 1.13.0; requirements.txt asks for " in next(doctor.check_ray())


def test_a_tracking_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    assert list(doctor.check_tracking()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer" in next(doctor.check_tracking())


def test_a_cache_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPPO_DATA", str(tmp_path / "file" / "cache"))
    assert "set CLIPPO_DATA" in next(doctor.check_data_cache())


def test_a_place_for_runs_is_tried_and_left_clean(tmp_path: Path):
    assert list(doctor.check_place(str(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "file/" in next(doctor.check_place(str(tmp_path / "file")))


def test_a_token_that_others_can_read_is_told_with_the_command(monkeypatch, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(Path, "parents", property(lambda _: ()))
    token.chmod(0o644)
    assert list(doctor.check_token()) == [
        f"others on this machine can read Ray's token: chmod 600 {token}"
    ]
    token.chmod(0o600)
    assert list(doctor.check_token()) == []


def cluster_report(
    nodes: list, capsys, monkeypatch: pytest.MonkeyPatch, **versions: str
) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", ())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("CLIPPO_DATA")
    with dashboard(nodes, **versions) as address:
        code = doctor.main(["--address", address])
    return code, capsys.readouterr().out


def test_a_cluster_in_order_is_found_so(capsys, monkeypatch: pytest.MonkeyPatch):
    head = HEAD | {"resources_total": {"CPU": 0.0}}
    nodes = [head, node("renderer", ray_subcluster="renderer"), node("trainer")]
    code, output = cluster_report(nodes, capsys, monkeypatch)
    assert (code, output) == (0, "ok  cluster\n    1 head, 1 renderer, 1 trainer\nok  nodes\n")


def test_wrong_labels_a_busy_head_and_other_versions_are_told(capsys, monkeypatch):
    nodes = [HEAD, node("renderer"), node("trainer", ray_subcluster="renderer")]
    code, output = cluster_report(nodes, capsys, monkeypatch, release="2.49.0", python="3.12.1")
    assert code == 4
    assert f"runs Ray 2.49.0, here is {ray.__version__}; " in output
    assert "runs Python 3.12.1" in output
    assert "the head takes work" in output
    assert "a renderer without the label ray-subcluster=renderer" in output
    assert "a trainer with ray-subcluster=renderer" in output


def test_a_cluster_that_does_not_answer_is_a_thing_to_fix(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", ())
    monkeypatch.delenv("CLIPPO_DATA")
    assert doctor.main(["--address", "http://127.0.0.1:9"]) == 4
    assert "no Ray dashboard answers" in capsys.readouterr().out
