"""Jobs of a Ray cluster: their submission, their log on this terminal, and their end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clippo_core.errors import ConfigError, StorageError, did_you_mean
from cluster.dashboard import ADDRESS_VARIABLES, Dashboard, auth_headers, auth_token
from cluster.environment import JobEnvironment
from cluster.package import CodePackage
from cluster.sealing import SEALED_VARIABLE, SETUP_HOOK, seal
from pipelines.runtime.scratch import scratch_folder
from pipelines.tracking.run_tags import COMMIT_VARIABLE, DIRTY_VARIABLE, git_tags

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from cluster.plan import JobPlan

#: Seconds that a stopped run gets to write its checkpoint; Ray would give it three.
STOP_WAIT_S = 600
EXIT_STOPPED = 130
#: Advice for the commonest reason on a machine that people share, which Ray does not name.
_NO_AGENT = (
    " Another Ray on that machine may hold the port of its agent: start it with "
    "--dashboard-agent-listen-port=52366"
)
_ASK_EVERY_S = 2.0
_AGENT_COMES_WITHIN_S = 60.0
#: Seconds after which a head that was moved to another machine is surely back.
_GIVE_UP_AFTER_S = 600.0


@dataclass(frozen=True)
class Job:
    """A job with all that is sent to the cluster."""

    plan: JobPlan
    package: CodePackage
    environment: JobEnvironment

    @property
    def entrypoint(self) -> str:
        """Shell command that Ray runs on the head."""
        # exec: signals reach the driver itself, and no shell stays between it and Ray.
        folder = [] if self.plan.folder is None else ["--folder", self.plan.folder]
        return "exec " + shlex.join(["python", "-m", "cluster.job", *folder, *self.plan.words])


def job_client(dashboard: Dashboard) -> JobSubmissionClient:
    """Return a Ray client for the jobs of a dashboard's cluster.

    Raises:
        StorageError: if the cluster takes no jobs.
    """
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray prefers the variables to the address that it is given, and has settled at its import
    # whether it uses a token; so it is told.
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        return JobSubmissionClient(dashboard.address, headers=auth_headers())
    except (OSError, RuntimeError) as error:
        raise StorageError(f"the cluster at {dashboard.address} takes no jobs: {error}") from error
    finally:
        os.environ.update(hidden)


def submit_or_attach(client: JobSubmissionClient, job: Job, named: str | None) -> str:
    """Submit the job, unless it is there already; return its id.

    Args:
        client: client of the cluster.
        job: job to submit.
        named: id that the person asked for; None takes the plan's.

    Raises:
        ConfigError: if a job of that id has failed.
        StorageError: if the cluster does not take it.
    """
    jobs = {details.submission_id: details for details in client.list_jobs()}
    plan, submission_id = job.plan, named or str(job.plan.stem)
    at_work = _at_work_on(plan, jobs.values())
    if at_work is not None and at_work != submission_id:
        print(f"job {at_work} is at work on {plan.metadata['clippo.run']}; attaching to it")
        return at_work
    if plan.words[0] == "resume" and named is None:
        # Each attempt to go on with a run is a job of its own.
        submission_id = _next_attempt(submission_id, jobs)
    known = jobs.get(submission_id)
    if known is None:
        return _send(client, job, submission_id)
    if known.status in ("FAILED", "STOPPED"):
        raise ConfigError(_what_now(submission_id, known, plan))
    print(f"job {submission_id} is there already, and {known.status}; attaching to it")
    return submission_id


def _at_work_on(plan: JobPlan, jobs: Iterable[JobDetails]) -> str | None:
    """Return the id of the job that is writing to the plan's run at this moment, or None."""
    run = plan.metadata.get("clippo.run")
    for details in jobs:
        is_same = run is not None and (details.metadata or {}).get("clippo.run") == run
        if is_same and not details.status.is_terminal():
            return details.submission_id
    return None


def _next_attempt(stem: str, jobs: Mapping[str | None, JobDetails]) -> str:
    """Return the last attempt's id if it is there and has not failed, else the next."""
    attempts = (f"{stem}-{number}" for number in itertools.count(1))
    return next(a for a in attempts if a not in jobs or jobs[a].status not in ("FAILED", "STOPPED"))


def _what_now(submission_id: str, known: JobDetails, plan: JobPlan) -> str:
    code = "" if known.driver_exit_code is None else f" with exit code {known.driver_exit_code}"
    run = plan.metadata.get("clippo.run")
    resume = f"Go on with its run:\n  python -m cluster.submit -- resume {run}\n" if run else ""
    return (
        f"job {submission_id} {known.status.lower()}{code}. Its log:\n"
        f"  python -m cluster.submit --follow --submission-id {submission_id}\n"
        f"{resume}For a new run, name the job anew: --submission-id {submission_id}-2"
    )


def _send(client: JobSubmissionClient, job: Job, submission_id: str) -> str:
    with scratch_folder() as folder:
        archive = folder / "code.zip"
        archive.write_bytes(job.package.content)
        runtime_env = {"working_dir": str(archive), **process_environment(job.environment)}
        begun = time.monotonic()
        while True:
            try:
                return client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=job.plan.metadata,
                )
            except RuntimeError as error:
                has_no_agent = "No available agent" in str(error)
                if not has_no_agent or time.monotonic() - begun > _AGENT_COMES_WITHIN_S:
                    advice = _NO_AGENT if has_no_agent else ""
                    raise StorageError(
                        f"the cluster does not take the job: {error}{advice}"
                    ) from error
            # A head that was started just now has no agent yet.
            print("waiting for the head's agent, which takes the job", file=sys.stderr)
            time.sleep(_ASK_EVERY_S)


def process_environment(environment: JobEnvironment) -> dict[str, Any]:
    """Return a job's variables, and its secrets sealed, as a part of `runtime_env`."""
    tags = git_tags()
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        COMMIT_VARIABLE: tags.get("mlflow.source.git.commit", ""),
        DIRTY_VARIABLE: tags.get("git.dirty", ""),
        **environment.places,
    }
    if not environment.secrets:
        return {"env_vars": variables}
    token = auth_token()
    assert token is not None
    variables[SEALED_VARIABLE] = seal(environment.secrets, token)
    return {"env_vars": variables, "worker_process_setup_hook": SETUP_HOOK}


def manage_jobs(
    client: JobSubmissionClient, submission_id: str | None, *, is_stop: bool = False
) -> list[str]:
    """Return a line for each job, or for the one of a name; stop that one if asked to.

    Raises:
        ConfigError: if there is no job of that name.
    """
    jobs = sorted(client.list_jobs(), key=lambda job: job.start_time or 0, reverse=True)
    if submission_id is None:
        return [_job_line(job) for job in jobs] or ["no job was submitted yet"]
    found = [job for job in jobs if job.submission_id == submission_id]
    if not found:
        known = [str(job.submission_id) for job in jobs]
        raise ConfigError(
            f"there is no job {submission_id}{did_you_mean(submission_id, known)}; --list prints "
            "all of them"
        )
    if is_stop and not found[0].status.is_terminal():
        client.stop_job(submission_id)
        return [
            f"{submission_id} is asked to stop; its run writes a checkpoint first. Its log:",
            f"  python -m cluster.submit --follow --submission-id {submission_id}",
        ]
    run = (found[0].metadata or {}).get("clippo.run")
    is_over = found[0].status.is_terminal() and found[0].status != "SUCCEEDED"
    resume = [f"  python -m cluster.submit -- resume {run}"] if run and is_over else []
    return [_job_line(found[0]), *resume]


def _job_line(job: JobDetails) -> str:
    begun = "not begun"
    if job.start_time:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.start_time / 1000))
    code = "" if job.driver_exit_code is None else f" ({job.driver_exit_code})"
    run = (job.metadata or {}).get("clippo.run", "")
    return f"{job.submission_id}  {job.status.lower()}{code}  {begun}  {run}".rstrip()


async def follow_job(client: JobSubmissionClient, submission_id: str) -> JobDetails:
    """Print a job's log as it grows, through lost connections; return how the job ended.

    Raises:
        StorageError: if the cluster is gone for long.
    """
    from aiohttp import ClientError

    log, lost_at = _Log(client, submission_id), None
    while True:
        try:
            details = await log.follow()
            if details.status.is_terminal():
                return details
            lost_at = None
        # requests raises the first, aiohttp the second, Ray the third where a socket closes.
        except (OSError, ClientError, RuntimeError) as error:
            lost_at = lost_at or time.monotonic()
            log.note(f"the connection was lost, trying again: {error}")
            if time.monotonic() - lost_at > _GIVE_UP_AFTER_S:
                raise StorageError(
                    f"the cluster does not answer any more ({error}); the job may go on there"
                ) from error
        await asyncio.sleep(_ASK_EVERY_S)


class _Log:
    """A job's log on this terminal; each new connection brings the whole log again."""

    def __init__(self, client: JobSubmissionClient, submission_id: str) -> None:
        self._client, self._id = client, submission_id
        self._printed, self._note = 0, ""

    async def follow(self) -> JobDetails:
        """Print what is new until the log or the connection ends."""
        details = self._client.get_job_info(self._id)
        if details.status == "PENDING":
            self.note(f"pending: {details.message}")
            return details
        seen = 0
        async for chunk in self._client.tail_job_logs(self._id):
            print(chunk[max(self._printed - seen, 0) :], end="", flush=True)
            seen += len(chunk)
            self._printed = max(self._printed, seen)
        return self._client.get_job_info(self._id)

    def note(self, text: str) -> None:
        """Print a message of our own, unless it was the last one."""
        if text != self._note:
            print(text, file=sys.stderr)
        self._note = text


def exit_code(details: JobDetails) -> int:
    """Return the exit code of the job's driver: 130 if it was stopped, 4 if it never ran."""
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return EXIT_STOPPED
    code = details.driver_exit_code
    if code is not None and code > 0:
        return code
    print(f"\n{details.message}", file=sys.stderr)
    return StorageError.exit_code
