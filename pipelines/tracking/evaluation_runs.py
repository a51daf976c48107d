"""Child runs in MLflow, one for each evaluation, with its checkpoint, data set and status."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

from pipelines.reporting.reports import EvaluationReport
from pipelines.reporting.stored import file_name
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_client import DataSet
from pipelines.tracking.mlflow_queue import StepMetrics
from pipelines.tracking.mlflow_run import TAG_CHARS, RunTracker, log_picture_file


def log_evaluation(tracker: RunTracker, report: EvaluationReport, *, step: int) -> None:
    """Add a child run for an evaluation that has ended, well or not; returns at once."""
    run = _EvaluationRun(tracker, report, step)
    pictures = [
        functools.partial(run.log_picture, name, png) for name, png in report.pictures.items()
    ]
    for piece in (run.create, run.describe, *pictures, run.end):
        tracker.queue.add(f"evaluation {report.name} of step {step}", piece)


class _EvaluationRun:
    """Sends a report piece by piece; each piece may be sent again without harm."""

    def __init__(self, tracker: RunTracker, report: EvaluationReport, step: int) -> None:
        self._parent, self._client = tracker.run, tracker.client
        self._report, self._step = report, step
        self._ended_ms = int(time.time() * 1000)
        self._run_id: str | None = None

    def create(self) -> None:
        report = self._report
        tags = {
            "mlflow.parentRunId": self._parent.run_id,
            "clippo.checkpoint": report.checkpoint,
            "clippo.step": str(self._step),
            "clippo.task": report.benchmark.task,
            "clippo.status": report.status,
        }
        if report.message:
            tags |= {"mlflow.note.content": report.message[:TAG_CHARS]}
        run = self._client.create_run(
            self._parent.experiment_id,
            start_time=self._ended_ms - int(1000 * report.seconds),
            run_name=f"{report.name} {Location.of(report.checkpoint).name}",
            tags=tags,
        )
        self._run_id = run.info.run_id

    def describe(self) -> None:
        from mlflow.entities import Param

        report, run_id = self._report, self._created()
        if report.status != "ok":
            return
        result = report.result
        wanted = ("limit", "num_samples", "num_rejected", "model")
        params = [Param(name, str(result[name])) for name in wanted]
        numbers = StepMetrics(self._step, self._ended_ms, result["metrics"] | _floors(result))
        self._client.log_batch(run_id, numbers.to_mlflow(), params)
        if report.benchmark.source:
            data_set = DataSet(result["source"], result["source_digest"], report.benchmark.source)
            self._client.log_inputs(run_id, [data_set.to_mlflow("evaluation")])
        text = json.dumps(result, indent=2, ensure_ascii=False)
        self._client.log_text(run_id, text, "result.json")

    def log_picture(self, name: str, png: bytes) -> None:
        file = f"{file_name(self._report)}-{name}.png"
        log_picture_file(self._client, self._created(), png, file)

    def end(self) -> None:
        status = "FINISHED" if self._report.status == "ok" else "FAILED"
        self._client.set_terminated(self._created(), status, end_time=self._ended_ms)

    def _created(self) -> str:
        if self._run_id is None:
            raise RuntimeError("its child run could not be made")
        return self._run_id


def _floors(result: Mapping[str, Any]) -> dict[str, float]:
    """Return each metric's highest floor and its interval's ends, named to sort beside it."""
    floors = {f"{name}_floor": max(found.values()) for name, found in result["floors"].items()}
    ends = {
        f"{name}_{end}": value
        for name, interval in result["intervals"].items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    return floors | ends
