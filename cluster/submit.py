"""`python -m cluster.submit [options] -- COMMAND …`: a command of `pipelines`, on a cluster.

    python -m cluster.submit --follow -- train demo --train.steps 20 --storage.root s3://bucket/runs

The command is checked here first, the code is packed and uploaded, and Ray Jobs runs it. The same
command with the same code is the same job: submitting it again attaches to it.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from clippo_core.errors import ClippoError, ConfigError, StorageError
from cluster.dashboard import Dashboard, dashboard_address, use_token_mode
from cluster.environment import job_environment, refuse_secrets
from cluster.package import pack
from cluster.ray_jobs import (
    EXIT_STOPPED,
    Job,
    exit_code,
    follow_job,
    job_client,
    manage_jobs,
    submit_or_attach,
)
from pipelines.cli import COMMANDS

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


@dataclass(frozen=True, kw_only=True)
class SubmitArguments:
    """Submit a command of python -m pipelines, given after --, to a Ray cluster."""

    address: str | None = None
    """URL of Ray's dashboard; None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's."""
    dry_run: bool = False
    """Check the command and pack the code, print what would be submitted, and stop."""
    follow: bool = False
    """Print the job's log until it ends, and exit as it does. Ctrl-C leaves the job running."""
    submission_id: str | None = None
    """Name of the job; None builds one of the run and the attempt. Alone, without a command, it
    attaches to that job."""
    list: bool = False
    """Print the cluster's jobs, the newest first, and stop."""
    status: str | None = None
    """Print how the job of this name stands, and stop."""
    stop: str | None = None
    """Stop the job of this name: its run writes a checkpoint first, and can be resumed."""
    env: tuple[str, ...] = ()
    """Names of environment variables to give to the job, sealed, beside those of AWS and MLflow."""


def main(argv: Sequence[str]) -> int:
    """Submit a command, and follow it if asked to; return the exit code (a followed job's own)."""
    use_token_mode()
    at = argv.index("--") if "--" in argv else len(argv)
    try:
        if commands := [word for word in argv[:at] if word in COMMANDS]:
            begin = argv.index(commands[0])
            raise ConfigError(
                "the command comes behind --: python -m cluster.submit "
                + shlex.join([*argv[:begin], "--", *argv[begin:at]])
            )
        options = tyro.cli(SubmitArguments, args=argv[:at], prog="python -m cluster.submit")
        return submit(options, argv[at + 1 :])
    except ClippoError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; a job that was submitted goes on", file=sys.stderr)
        return EXIT_STOPPED


def submit(options: SubmitArguments, words: Sequence[str]) -> int:
    """Check and pack a command, submit it or attach to its job, and follow it if asked to.

    Raises:
        ConfigError: if the command cannot run.
        SampleError: if the data that can be seen from here cannot be used.
        StorageError: if the cluster does not answer, or refuses.
    """
    asked = options.stop or options.status
    if not words and options.submission_id is None and asked is None and not options.list:
        raise ConfigError(
            "name a command: python -m cluster.submit -- train demo; or --list, --status ID, "
            "--stop ID"
        )
    dashboard = Dashboard(dashboard_address(options.address))
    if options.list or asked is not None:
        lines = manage_jobs(job_client(dashboard), asked, is_stop=options.stop is not None)
        print("\n".join(lines))
        return 0
    is_here = _is_here(dashboard, is_dry_run=options.dry_run)
    if not words:
        return _attach(job_client(dashboard), str(options.submission_id), follows=options.follow)
    # Imported here: it imports what a run needs, and following a job needs none of that.
    from cluster.plan import name_job, plan_job

    plan = plan_job(words, is_here=is_here)
    package = pack(files=plan.files)
    plan = name_job(plan, package.digest)
    environment = job_environment(options.env, is_here=is_here)
    job = Job(plan, package, environment)
    refuse_secrets(plan.words, package.content, environment)
    print("\n".join(f"note: {note}" for note in (*plan.notes, *environment.notes)))
    print(package.summary())
    print(environment.summary())
    if options.dry_run:
        print(f"entrypoint: {job.entrypoint}")
        print(f"would submit to {dashboard.address} as")
        print(options.submission_id or plan.stem)
        return 0
    client = job_client(dashboard)
    submission_id = submit_or_attach(client, job, options.submission_id)
    if plan.run is not None:
        tracking = plan.tracking or environment.places.get("MLFLOW_TRACKING_URI")
        print(f"run {plan.run.uri}")
        print(f"MLflow: {tracking or 'as MLFLOW_TRACKING_URI of the nodes says'}")
    print(f"dashboard: {dashboard.address}/#/jobs/{submission_id}")
    return _attach(client, submission_id, follows=options.follow)


def _is_here(dashboard: Dashboard, *, is_dry_run: bool) -> bool:
    """Return True if the cluster is this machine alone; False if a dry run gets no answer.

    Raises:
        StorageError: if the cluster does not answer, or runs another release of Ray.
    """
    try:
        if mismatch := dashboard.release_mismatch():
            raise StorageError(mismatch)
        return dashboard.is_this_machine()
    except StorageError as error:
        if not is_dry_run:
            raise
        print(f"note: {error}")
        return False


def _attach(client: JobSubmissionClient, submission_id: str, *, follows: bool) -> int:
    """Follow the job, or print how to; the last line printed is its id.

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
