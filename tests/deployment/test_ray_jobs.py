"""Following a job, and finding the one that is meant, with a client that plays Ray's part."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from clippo_core.errors import ConfigError, StorageError
from cluster import ray_jobs, submit
from cluster.dashboard import use_token_mode
from cluster.plan import JobPlan
from pipelines.runtime.storage import Location


def details(status: str, *, run: str = "", code: int | None = None) -> SimpleNamespace:
    found = {"status": JobStatus(status), "metadata": {"clippo.run": run}, "message": "it said"}
    return SimpleNamespace(**found, driver_exit_code=code, submission_id=f"job of {run}")


class FlakyClient:
    """A client whose connections break after some parts of the log; the job ends with the last."""

    parts = ("one\n", "two\n", "three\n")

    def __init__(self, *lives: int) -> None:
        self._lives, self._is_done = list(lives), False

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return details("SUCCEEDED" if self._is_done else "RUNNING")

    async def tail_job_logs(self, submission_id: str):
        life = self._lives.pop(0)
        for part in self.parts[:life]:
            yield part
        if life < len(self.parts):
            raise RuntimeError("closed")
        self._is_done = True


def test_a_log_is_printed_once_however_often_the_connection_breaks(capsys, monkeypatch):
    monkeypatch.setattr(ray_jobs, "_ASK_EVERY_S", 0.0)
    client = FlakyClient(1, 0, 2, 3)
    assert asyncio.run(ray_jobs.follow_job(client, "x")).status == "SUCCEEDED"  # pyright: ignore
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\nthree\n"
    assert captured.err == "the connection was lost, trying again: closed\n"


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", 130, 130),
        ("STOPPED", None, 130),
        ("FAILED", None, 4),
        ("FAILED", -9, 4),
    ],
)
def test_the_exit_code_is_the_drivers_where_it_has_one(status: str, driver, expected: int):
    assert ray_jobs.exit_code(details(status, code=driver)) == expected  # pyright: ignore


class JobsOf:
    """A client that knows some jobs."""

    def __init__(self, *jobs: SimpleNamespace) -> None:
        self.jobs, self.stopped = jobs, []

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.jobs)

    def stop_job(self, submission_id: str) -> None:
        self.stopped.append(submission_id)


def test_jobs_are_listed_looked_at_and_stopped():
    running, failed = (details(status, run=f"s3://b/{status}") for status in ("RUNNING", "FAILED"))
    running.submission_id, running.start_time = "now", 2_000_000_000_000
    failed.submission_id, failed.start_time, failed.driver_exit_code = "before", 10**12, 3
    client = JobsOf(failed, running)
    now, before = ray_jobs.manage_jobs(client, None)  # pyright: ignore
    assert now.startswith("now  running  2033-05-")
    assert now.endswith("  s3://b/RUNNING")
    assert before.startswith("before  failed (3)  2001-09-")
    assert ray_jobs.manage_jobs(client, "before") == [  # pyright: ignore
        before,
        "  python -m cluster.submit -- resume s3://b/FAILED",
    ]
    assert ray_jobs.manage_jobs(client, "now") == [now]  # pyright: ignore
    assert "asked to stop" in ray_jobs.manage_jobs(client, "now", is_stop=True)[0]  # pyright: ignore
    assert client.stopped == ["now"]
    ray_jobs.manage_jobs(client, "before", is_stop=True)  # pyright: ignore
    assert client.stopped == ["now"], "what has ended is not stopped"
    with pytest.raises(ConfigError, match="no job befor; did you mean before"):
        ray_jobs.manage_jobs(client, "befor")  # pyright: ignore
    assert ray_jobs.manage_jobs(JobsOf(), None) == ["no job was submitted yet"]  # pyright: ignore


def test_a_command_without_dashes_before_it_is_told_where_they_go(capsys):
    assert submit.main(["--follow", "train", "demo", "--train.steps", "20"]) == 2
    assert "python -m cluster.submit --follow -- train demo --train.steps 20" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("agent_comes", [True, False])
def test_a_head_without_an_agent_yet_is_waited_for(agent_comes: bool, monkeypatch, capsys):
    monkeypatch.setattr(ray_jobs, "_ASK_EVERY_S", 0.01)
    monkeypatch.setattr(ray_jobs, "_AGENT_COMES_WITHIN_S", 0.1)
    monkeypatch.setattr(ray_jobs, "process_environment", lambda _: {})
    answers = ["No available agent to submit job"] * (2 if agent_comes else 1000)

    def submit_job(**_more) -> str:
        if answers:
            raise RuntimeError(answers.pop())
        return "sent"

    job = SimpleNamespace(
        entrypoint="",
        package=SimpleNamespace(content=b""),
        plan=SimpleNamespace(metadata={}),
        environment=None,
    )
    client = SimpleNamespace(submit_job=submit_job)
    if agent_comes:
        assert ray_jobs._send(client, job, "x") == "sent"  # pyright: ignore
    else:
        with pytest.raises(StorageError, match="--dashboard-agent-listen-port"):
            ray_jobs._send(client, job, "x")  # pyright: ignore
    assert "waiting for the head's agent" in capsys.readouterr().err


def test_a_run_that_is_at_work_is_attached_to_and_an_attempt_that_failed_is_followed_by_another():
    plan = JobPlan(("resume", "s3://b/run"), run=Location("s3://b/run"), stem="run-resume")
    jobs = [details("FAILED", run="s3://b/run"), details("RUNNING", run="s3://b/other")]
    assert ray_jobs._at_work_on(plan, jobs) is None  # pyright: ignore
    jobs.append(details("PENDING", run="s3://b/run"))
    assert ray_jobs._at_work_on(plan, jobs) == "job of s3://b/run"  # pyright: ignore
    attempts = {"run-resume-1": details("FAILED"), "run-resume-2": details("STOPPED")}
    assert ray_jobs._next_attempt("run-resume", attempts) == "run-resume-3"  # pyright: ignore
    attempts["run-resume-2"] = details("SUCCEEDED")
    assert ray_jobs._next_attempt("run-resume", attempts) == "run-resume-2"  # pyright: ignore


def test_a_token_that_others_can_read_is_closed(tmp_path, monkeypatch):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    use_token_mode()
    assert token.stat().st_mode & 0o777 == 0o600
