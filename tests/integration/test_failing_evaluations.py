"""Evaluations that crash, hang or lack their data, beside a training run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.config.resolution import resolve
from pipelines.config.settings import EvaluationOptions
from pipelines.reporting.reports import Benchmark, EvaluationReport
from pipelines.reporting.stored import stored_results
from pipelines.training.run import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_what_goes_wrong_beside_training_is_in_the_run_and_nowhere_else(
    local_ray, make_config, colours, tmp_path, monkeypatch
):
    """A crash, a hang and missing data; the steps are all made, and what is well is measured."""
    import os

    from pipelines.evaluation import tasks as module

    def misbehave(
        checkpoint: str, benchmark: Benchmark, options: EvaluationOptions
    ) -> EvaluationReport:
        if benchmark.task == "retrieval":
            os._exit(1)
        if benchmark.task == "behaviour":
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        return module.evaluate(checkpoint, benchmark, options)

    monkeypatch.setattr(module, "_evaluate_beside", misbehave)
    tasks = (f"retrieval:{colours}", f"behaviour:{colours}", f"zero_shot:{tmp_path}")
    config = make_config(
        train={"steps": 8, "checkpoint_every": 8},
        evaluation={"tasks": (*tasks, "patch_filters"), "cpus": 0.25, "timeout_s": 25},
    )
    summary = train(resolve(config))
    statuses = {report.benchmark.task: report.status for report in summary.evaluations}
    assert statuses == {
        "retrieval": "failed",
        "behaviour": "timeout",
        "zero_shot": "failed",
        "patch_filters": "ok",
    }
    client, tracked = MlflowClient(summary.tracked.uri), summary.tracked
    parent = client.get_run(tracked.run_id)
    assert (parent.info.status, parent.data.tags["clippo.state"]) == ("FINISHED", "completed")
    assert len(client.get_metric_history(tracked.run_id, "train/loss")) == 8
    children = client.search_runs(
        [tracked.experiment_id], f"tags.`mlflow.parentRunId` = '{tracked.run_id}'"
    )
    ends = {child.data.tags["clippo.task"]: child for child in children}
    assert ends["patch_filters"].data.metrics["explained_by_10"] > 0
    assert ends["patch_filters"].data.metrics["explained_by_10_floor"] > 0
    why = {"retrieval": "died", "behaviour": "not done after 25 s", "zero_shot": "no prepared data"}
    for task, part in why.items():
        assert ends[task].info.status == "FAILED"
        assert part in ends[task].data.tags["mlflow.note.content"]
    results = stored_results(summary.run / "evaluations" / summary.checkpoint.name)
    assert sorted(result["status"] for result in results.values()) == [
        "failed",
        "failed",
        "ok",
        "timeout",
    ]
    # It must not live on and hold a CPU.
    process, deadline = Path("/proc", (tmp_path / "pid").read_text()), time.monotonic() + 30
    while process.exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
