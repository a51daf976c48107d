"""Following a job, and finding the one that is meant, with a client that plays Ray's part."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from cluster import ray_jobs
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
