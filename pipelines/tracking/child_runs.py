"""Evaluations as child runs: each with its checkpoint, its data set, and its true end."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

from pipelines.reporting.reports import EvaluationReport
from pipelines.reporting.stored import file_name
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_run import (
    TAG_CHARS,
    DataSet,
    RunTracker,
    dataset_input,
    log_picture_file,
    metric_points,
)


def log_evaluation(tracker: RunTracker, report: EvaluationReport, *, step: int) -> None:
    """Add a child run for an evaluation that has ended, well or not."""
    _ChildRun(tracker, report, step).send()


def with_floors(result: Mapping[str, Any]) -> dict[str, float]:
    """For each metric the highest floor and the interval's ends, by names that sort beside it."""
    floors = {f"{name}_floor": max(found.values()) for name, found in result["floors"].items()}
    ends = {
        f"{name}_{end}": value
        for name, interval in result["intervals"].items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }
    return floors | ends


class _ChildRun:
    """Sends a report piece by piece; each piece may be sent again without harm."""

    def __init__(self, tracker: RunTracker, report: EvaluationReport, step: int) -> None:
        self._tracker, self._client = tracker, tracker.client
        self._report, self._step = report, step
        self._ended_ms = int(time.time() * 1000)
        self._run_id: str | None = None

    def send(self) -> None:
        """Put all pieces into the outbox."""
        what = f"evaluation {self._report.name} of step {self._step}"
        pictures = [
            functools.partial(self._log_picture, name, png)
            for name, png in self._report.pictures.items()
        ]
        for piece in (self._create, self._describe, *pictures, self._end):
            self._tracker.outbox.add(what, piece)

    def _create(self) -> None:
        report, parent = self._report, self._tracker.run
        tags = {
            "mlflow.parentRunId": parent.run_id,
            "clippo.checkpoint": report.checkpoint,
            "clippo.step": str(self._step),
            "clippo.task": report.benchmark.task,
            "clippo.status": report.status,
        }
        if report.message:
            tags |= {"mlflow.note.content": report.message[:TAG_CHARS]}
        run = self._client.create_run(
            parent.experiment_id,
            start_time=self._ended_ms - int(1000 * report.seconds),
            run_name=f"{report.name} {Location.of(report.checkpoint).name}",
            tags=tags,
        )
        self._run_id = run.info.run_id

    def _describe(self) -> None:
        from mlflow.entities import Param

        report, run_id = self._report, self._created()
        if report.status != "ok":
            return
        result = report.result
        wanted = ("limit", "num_samples", "num_rejected", "model")
        params = [Param(name, str(result[name])) for name in wanted]
        numbers = result["metrics"] | with_floors(result)
        points = metric_points(numbers, step=self._step, timestamp_ms=self._ended_ms)
        self._client.log_batch(run_id, points, params)
        if report.benchmark.source:
            data_set = DataSet(result["source"], result["source_digest"], report.benchmark.source)
            self._client.log_inputs(run_id, [dataset_input(data_set, "evaluation")])
        self._client.log_text(
            run_id, json.dumps(result, indent=2, ensure_ascii=False), "result.json"
        )

    def _log_picture(self, name: str, png: bytes) -> None:
        log_picture_file(
            self._client, self._created(), png, f"{file_name(self._report)}-{name}.png"
        )

    def _end(self) -> None:
        status = "FINISHED" if self._report.status == "ok" else "FAILED"
        self._client.set_terminated(self._created(), status, end_time=self._ended_ms)

    def _created(self) -> str:
        if self._run_id is None:
            raise RuntimeError("its child run could not be made")
        return self._run_id
