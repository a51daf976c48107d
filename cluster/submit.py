"""`python -m cluster.submit [options] -- COMMAND …`: a command of `pipelines`, on a cluster.

    python -m cluster.submit --follow -- train demo --train.steps 20 --storage.root s3://bucket/runs

The command is checked here first, the code is packed and uploaded, and Ray Jobs runs it. The same
command with the same code is the same job: submitting it again attaches to it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from clippo_core.errors import ClippoError, ConfigError, StorageError
from cluster.dashboard import (
    ADDRESS_VARIABLES,
    RAY_RELEASE,
    Dashboard,
    Place,
    auth_headers,
    auth_token,
    dashboard_address,
    use_token_mode,
)
from cluster.environment import JobEnvironment, job_environment, refuse_secrets
from cluster.following import follow_job
from cluster.package import CodePackage, pack
from cluster.sealing import SEALED_VARIABLE, SETUP_HOOK, seal
from pipelines.tracking.run_tags import COMMIT_VARIABLE, DIRTY_VARIABLE, git_tags

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from cluster.plan import JobPlan

#: A stopped run writes its checkpoint first; Ray would give it three seconds.
STOP_WAIT_S = 600
_EXIT_STOPPED = 130
#: What Ray does not say, though it is the commonest reason on a machine that people share.
_NO_AGENT = (
    " If the head is up for longer than half a minute, another Ray on that machine may hold the "
    "port of its agent: start it with --dashboard-agent-listen-port=52366"
)


@dataclass(frozen=True, kw_only=True)
class SubmitArguments:
    """Submit a command of python -m pipelines, given after --, to a Ray cluster."""

    address: str | None = None
    """Of Ray's dashboard; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's."""
    dry_run: bool = False
    """Check the command and pack the code, print what would be submitted, and stop."""
    follow: bool = False
    """Print the job's log until it ends, and exit as it does. Ctrl-C leaves the job running."""
    submission_id: str | None = None
    """Name of the job; None: of the run and the attempt. Alone, without a command: attach."""
    env: tuple[str, ...] = ()
    """Names of environment variables to give to the job, sealed, beside those of AWS and MLflow."""


@dataclass(frozen=True)
class Job:
    """All that is sent to the cluster."""

    plan: JobPlan
    package: CodePackage
    environment: JobEnvironment


def main(argv: Sequence[str]) -> int:
    """Submit, and follow if asked to; the exit code, which is the job's if it was followed."""
    use_token_mode()
    options_words, words = _split(list(argv))
    options = tyro.cli(SubmitArguments, args=options_words, prog="python -m cluster.submit")
    try:
        return submit(options, words)
    except ClippoError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; a job that was submitted goes on", file=sys.stderr)
        return _EXIT_STOPPED


def submit(options: SubmitArguments, words: list[str]) -> int:
    """Check, pack, submit or attach, follow.

    Raises:
        ConfigError: if the command cannot run.
        SampleError: if the data that can be seen from here cannot be used.
        StorageError: if the cluster does not answer, or refuses.
    """
    if not words and options.submission_id is None:
        raise ConfigError("name a command: python -m cluster.submit … -- train demo …")
    dashboard = Dashboard(dashboard_address(options.address))
    place = _place(dashboard, is_needed=not options.dry_run)
    if not words:
        assert options.submission_id is not None
        return _attach(_client(dashboard), options.submission_id, follows=options.follow)
    # Here, because it imports what a run needs, and a job is followed without.
    from cluster.plan import name_job, plan_job

    plan = plan_job(words, place)
    package = pack(files=plan.files)
    plan = name_job(plan, package.digest)
    environment = job_environment(options.env, place)
    refuse_secrets(plan.words, package.content, environment)
    print("\n".join(f"note: {note}" for note in (*plan.notes, *environment.notes)))
    print(package.summary())
    print(environment.summary())
    if options.dry_run:
        print(f"entrypoint: {_entrypoint(plan)}")
        print(f"would submit to {dashboard.address} as")
        print(options.submission_id or plan.stem)
        return 0
    job = Job(plan, package, environment)
    client = _client(dashboard)
    submission_id = _submit_or_attach(client, job, options.submission_id)
    _print_places(plan, environment, dashboard, submission_id)
    return _attach(client, submission_id, follows=options.follow)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _place(dashboard: Dashboard, *, is_needed: bool) -> Place:
    """Ask the cluster who it is; a dry run does without an answer."""
    try:
        version = dashboard.ray_version()
        if not version.startswith(RAY_RELEASE):
            raise StorageError(
                f"the cluster at {dashboard.address} runs Ray {version}; this code is made for "
                f"{RAY_RELEASE}*: use an image or environment of requirements.txt"
            )
        return Place(dashboard.address, is_here=dashboard.is_this_machine())
    except StorageError as error:
        if is_needed:
            raise
        print(f"note: {error}")
        return Place(dashboard.address, is_here=False)


def _client(dashboard: Dashboard) -> JobSubmissionClient:
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


def _submit_or_attach(client: JobSubmissionClient, job: Job, named: str | None) -> str:
    """Submit the job, unless it is there already; its id.

    Raises:
        ConfigError: if a job of that name has failed.
    """
    jobs = {details.submission_id: details for details in client.list_jobs()}
    plan, submission_id = job.plan, named or str(job.plan.stem)
    at_work = _at_work_on(plan, jobs.values())
    if at_work is not None and at_work != submission_id:
        print(f"job {at_work} is at work on {plan.metadata['clippo.run']}; attaching to it")
        return at_work
    if plan.is_resume and named is None:
        submission_id = _next_attempt(submission_id, jobs)
    known = jobs.get(submission_id)
    if known is None:
        return _send(client, job, submission_id)
    if known.status in ("FAILED", "STOPPED"):
        raise ConfigError(_what_now(submission_id, known, plan))
    print(f"job {submission_id} is there already, and {known.status}; attaching to it")
    return submission_id


def _at_work_on(plan: JobPlan, jobs: Iterable[JobDetails]) -> str | None:
    """The job that is writing to the run at this moment."""
    for details in jobs:
        run = (details.metadata or {}).get("clippo.run")
        if run and run == plan.metadata.get("clippo.run") and not details.status.is_terminal():
            return details.submission_id
    return None


def _next_attempt(stem: str, jobs: Mapping[str | None, JobDetails]) -> str:
    """The last attempt's id if it is there and has not failed, else the next."""
    attempts = (f"{stem}-{number}" for number in itertools.count(1))
    return next(a for a in attempts if a not in jobs or jobs[a].status not in ("FAILED", "STOPPED"))


def _what_now(submission_id: str, known: JobDetails, plan: JobPlan) -> str:
    code = "" if known.driver_exit_code is None else f" with exit code {known.driver_exit_code}"
    run = plan.metadata.get("clippo.run")
    resume = f"go on with its run: … -- resume {run}\n" if run else ""
    return (
        f"job {submission_id} {known.status.lower()}{code}. Its log:\n"
        f"  python -m cluster.submit --follow --submission-id {submission_id}\n"
        f"{resume}or start again under another name: --submission-id {submission_id}-2 …"
    )


def _send(client: JobSubmissionClient, job: Job, submission_id: str) -> str:
    with tempfile.TemporaryDirectory(prefix="clippo-") as folder:
        archive = Path(folder) / "code.zip"
        archive.write_bytes(job.package.content)
        runtime_env = {"working_dir": str(archive), **process_environment(job.environment)}
        try:
            return client.submit_job(
                entrypoint=_entrypoint(job.plan),
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=job.plan.metadata,
            )
        except RuntimeError as error:
            advice = _NO_AGENT if "No available agent" in str(error) else ""
            raise StorageError(f"the cluster does not take the job: {error}{advice}") from error


def _entrypoint(plan: JobPlan) -> str:
    # exec: signals reach the driver itself, and no shell stays between it and Ray.
    folder = [] if plan.folder is None else ["--folder", plan.folder]
    return "exec " + shlex.join(["python", "-m", "cluster.job", *folder, *plan.words])


def process_environment(environment: JobEnvironment) -> dict[str, Any]:
    """Ray's `runtime_env` of a job but for its code: variables, and secrets under their seal."""
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


def _print_places(
    plan: JobPlan, environment: JobEnvironment, dashboard: Dashboard, submission_id: str
) -> None:
    if plan.run is not None:
        named = plan.tracking or environment.places.get("MLFLOW_TRACKING_URI")
        print(f"run {plan.run.uri}")
        print(f"MLflow: {named or 'as MLFLOW_TRACKING_URI of the nodes says'}")
    print(f"dashboard: {dashboard.address}/#/jobs/{submission_id}")


def _attach(client: JobSubmissionClient, submission_id: str, *, follows: bool) -> int:
    """Follow the job, or say how; the last line is its id.

    Raises:
        ConfigError: if there is no such job.
    """
    try:
        client.get_job_info(submission_id)
    except RuntimeError as error:
        raise ConfigError(f"there is no job {submission_id}: {error}") from error
    if not follows:
        print(f"its log: python -m cluster.submit --follow --submission-id {submission_id}")
        print(submission_id)
        return 0
    details = asyncio.run(follow_job(client, submission_id))
    code = exit_code(details)
    if code:
        print(f"\njob {submission_id} {details.status.lower()}, exit code {code}", file=sys.stderr)
    print(submission_id)
    return code


def exit_code(details: JobDetails) -> int:
    """The driver's own exit code where it has one: a stopped job 130, one that never ran 4."""
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return _EXIT_STOPPED
    code = details.driver_exit_code
    if code is not None and code > 0:
        return code
    print(f"\n{details.message}", file=sys.stderr)
    return StorageError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
