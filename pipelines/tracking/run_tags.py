"""The tags that say where a run comes from: the code's commit, the cluster, the job."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

#: Variable that `cluster.submit` sets, since the package that it uploads is no git checkout.
COMMIT_VARIABLE = "CLIPPO_GIT_COMMIT"
DIRTY_VARIABLE = "CLIPPO_GIT_DIRTY"
#: Variable that Ray sets in the driver of a job.
_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def run_tags() -> dict[str, str]:
    """Return commit, whether the code was changed since, cluster and job, as far as known."""
    # Here, because it takes a second, and the submitting side asks for the commit alone.
    import ray

    tags = git_tags()
    if ray.is_initialized():
        tags["clippo.cluster"] = ray.get_runtime_context().gcs_address
    job = json.loads(os.environ.get(_JOB_CONFIG_VARIABLE, "{}")).get("metadata", {})
    if "job_submission_id" in job:
        tags["clippo.job_id"] = job["job_submission_id"]
    return tags


def git_tags() -> dict[str, str]:
    """Return the code's commit, and whether it was changed since; {} where that is unknown."""
    commit = os.environ.get(COMMIT_VARIABLE)
    if commit:
        dirty = os.environ.get(DIRTY_VARIABLE, "unknown")
        return {"mlflow.source.git.commit": commit, "git.dirty": dirty}
    try:
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        return {"mlflow.source.git.commit": _git("rev-parse", "HEAD"), "git.dirty": str(is_dirty)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    run = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()
