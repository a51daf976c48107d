"""Jobs on a cluster that wants a token: submitted twice, stopped, resumed, failing; no secret left.

One cluster and two trainings for all of it, since each takes many seconds to start.
"""

from __future__ import annotations

import json
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clippo_core.config import to_json
from cluster import submit
from cluster.environment import JobEnvironment
from cluster.package import pack
from cluster.ray_jobs import process_environment
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location
from tests.deployment.clusters import LocalCluster, local_cluster

SECRETS = {"AWS_SECRET_ACCESS_KEY": "planted-in-the-shell-0123", "MINE": "planted-by-name-4567"}
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with local_cluster(folder, data=folder / "data") as started:
        yield started


def client(cluster: LocalCluster):
    from ray.job_submission import JobSubmissionClient

    token = {"Authorization": f"Bearer {cluster.token.read_text()}"}
    return JobSubmissionClient(cluster.address, headers=token)


def wait_for_checkpoint(run: Location) -> None:
    deadline = time.monotonic() + 300
    while not whole_checkpoints(run):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def shell(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the submitting one, with secrets in its environment."""
    for name, value in {**cluster.environment, **SECRETS}.items():
        monkeypatch.setenv(name, value)


def test_a_job_is_submitted_once_stopped_with_a_checkpoint_and_resumed(
    cluster: LocalCluster, make_config, tmp_path: Path, shell, capsys
):
    config = make_config(train={"steps": 300, "checkpoint_every": 10}, storage={"run": None})
    (tmp_path / "tiny.json").write_text(to_json(config))
    words = ["--env", "MINE", "--", "train", str(tmp_path / "tiny.json")]
    first = cluster.submit(*words, **SECRETS)
    assert first.returncode == 0, first.stderr
    name = first.stdout.splitlines()[-1]
    run = Location.of(config.storage.root) / name
    assert f"run {run.uri}\n" in first.stdout
    assert f"dashboard: {cluster.address}/#/jobs/{name}" in first.stdout

    to_cluster = ["--address", cluster.address]
    assert submit.main([*to_cluster, *words]) == 0
    again = capsys.readouterr().out
    assert f"job {name} is there already" in again
    assert again.splitlines()[-1] == name

    wait_for_checkpoint(run)
    client(cluster).stop_job(name)
    assert submit.main([*to_cluster, "--follow", "--submission-id", name]) == 130
    assert "StoppedError: stopped as asked" in capsys.readouterr().out
    assert submit.main([*to_cluster, *words]) == 2
    assert f"-- resume {run.uri}" in capsys.readouterr().err

    resumed = cluster.submit("--follow", "--env", "MINE", "--", "resume", run.uri, **SECRETS)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.splitlines()[-1] == f"{name}-resume-1"
    assert whole_checkpoints(run)[-1][0] == 300
    check_tags(config.storage.root, name)
    check_secrets(cluster, tmp_path)


def check_tags(root: str, name: str) -> None:
    """The run knows its commit and its job, though its code was no git checkout."""
    mlflow = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = mlflow.search_experiments(filter_string="name = 'clippo'")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    tags = run.data.tags
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["clippo.job_id"] == name
    assert ":" in tags["clippo.cluster"]
    assert run.info.status == "FINISHED"


def check_secrets(cluster: LocalCluster, work: Path) -> None:
    """No file of the run, of MLflow, or of Ray holds a secret: logs, packages, job records."""
    jobs = json.dumps([str(job) for job in client(cluster).list_jobs()])
    files = [f for folder in (work, cluster.ray_folder) for f in folder.rglob("*") if f.is_file()]
    assert any("job-driver" in file.name for file in files)
    for value in SECRETS.values():
        assert value not in jobs
        for file in files:
            assert value.encode() not in file.read_bytes(), file
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    assert not any(value.encode() in archive.read(n) for n in archive.namelist())


def test_a_failing_jobs_exit_code_is_ours_and_its_workers_opened_the_seal(
    cluster: LocalCluster, tmp_path: Path, shell, capsys
):
    script = tmp_path / "look.py"
    script.write_text(
        "import os, sys, ray\n"
        "ray.init(log_to_driver=False)\n"
        "look = ray.remote(num_cpus=1)(lambda: os.environ['MINE'][::-1])\n"
        "print('reversed', ray.get(look.remote()))\n"
        "sys.exit(5)\n"
    )
    environment = JobEnvironment({}, SECRETS)
    archive = tmp_path / "code.zip"
    archive.write_bytes(pack().content)
    client(cluster).submit_job(
        entrypoint=f"exec {sys.executable} {script}",
        submission_id="look",
        runtime_env={"working_dir": str(archive)} | process_environment(environment),
    )
    follow = ["--address", cluster.address, "--follow", "--submission-id", "look"]
    assert submit.main(follow) == 5
    assert f"reversed {SECRETS['MINE'][::-1]}" in capsys.readouterr().out


def test_another_token_is_refused_by_ray_itself(cluster: LocalCluster):
    wrong = cluster.submit("--submission-id", "x", RAY_AUTH_TOKEN="wrong")
    assert wrong.returncode == 4
    assert "the token in RAY_AUTH_TOKEN is not the cluster's" in wrong.stderr
