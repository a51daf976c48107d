"""`RunEvents`: the driver's notes in MLflow of what happens to a run."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from pipelines.config.derived import flatten
from pipelines.config.resolution import ResolvedRun
from pipelines.config.settings import RunConfig
from pipelines.figures.batch_sheets import draw_batch
from pipelines.reporting.reports import EvaluationReport
from pipelines.runtime.devices import NICE_BESIDE_RANKS
from pipelines.runtime.run_checkpoints import checkpoint_step, whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.stream.batch import StreamSpec
from pipelines.tracking.description import RunDescription
from pipelines.tracking.evaluation_runs import log_evaluation
from pipelines.tracking.mlflow_client import DataSet
from pipelines.tracking.mlflow_queue import send_spool
from pipelines.tracking.mlflow_run import RunTracker
from pipelines.tracking.models import CheckpointModels
from pipelines.tracking.node_metrics import ClusterMetrics

#: Seconds between looks at the cluster: its machines, its object store.
_LOOK_EVERY_S = 10.0


class RunEvents:
    """Takes in what happens to a run; never raises for MLflow's sake, and never waits for it."""

    def __init__(self, resolved: ResolvedRun, tracker: RunTracker) -> None:
        """Take the run and its tracker; nothing is noted yet."""
        self._resolved, self._tracker = resolved, tracker
        tracking = resolved.config.tracking
        self._models = CheckpointModels(
            tracker, resolved.config.model, registered_model=tracking.registered_model
        )
        self._pictures = _PictureTasks(resolved.stream, resolved.config)
        # MLflow's charts of pictures open at step 0, and are blank where it has none.
        self._is_start_drawn = not tracking.pictures or bool(whole_checkpoints(resolved.run))
        self._cluster = ClusterMetrics(tracker)
        self._looked_at = 0.0
        self.description = RunDescription(resolved.run.uri, resolved.config.train.steps)

    @property
    def checkpoints_in_use(self) -> set[str]:
        """Return the checkpoints that are being read, and must not be removed yet."""
        in_use = {self._models.checkpoint_in_use, *self._pictures.checkpoints}
        return {checkpoint for checkpoint in in_use if checkpoint is not None}

    @property
    def num_running(self) -> int:
        """Return how many checkpoints have pictures that are being drawn."""
        return self._pictures.num_running

    def checkpoint_committed(self, checkpoint: str) -> None:
        """Log a checkpoint as a model, and draw the batch that it saw last."""
        self.describe("running")
        config = self._resolved.config
        params = {k: v for k, v in flatten(config).items() if k.startswith("model.")}
        self._models.publish(checkpoint, params=params)
        if config.tracking.pictures:
            self._pictures.start(checkpoint)

    def checkpoint_removed(self, checkpoint: str) -> None:
        """Remove the model of a checkpoint that is gone, unless an alias points to it."""
        self._models.retire(checkpoint)

    def evaluation_ended(self, report: EvaluationReport) -> None:
        """Make a child run of an evaluation; the run itself gets its metrics and pictures, too."""
        step = _step_of(report.checkpoint)
        self.description.evaluated(report, step)
        log_evaluation(self._tracker, report, step=step)
        if report.status != "ok":
            return
        metrics = {f"eval/{report.name}/{k}": v for k, v in report.result["metrics"].items()}
        deciding = self._deciding(report)
        self._models.judge(
            step,
            metrics,
            data_set=_evaluated_data(report),
            champion_metric=deciding,
            less_is_better=str(deciding).rpartition("/")[2] in report.result["less_is_better"],
        )
        for name, png in report.pictures.items():
            self._tracker.log_picture(png, f"eval/{report.name}/{name}", step=step)

    def _deciding(self, report: EvaluationReport) -> str | None:
        """Return the metric that decides about the champion, by default the very first of all."""
        names = [f"{report.name}/{metric}" for metric in report.result["metrics"]]
        wanted = self._resolved.config.tracking.champion_metric
        if wanted is None and report.benchmark == self._resolved.benchmarks[0]:
            wanted = names[0]
        return f"eval/{wanted}" if wanted in names else None

    def follow(self, step: int) -> None:
        """Take in pictures, and once training has begun, look at the cluster from time to time."""
        for checkpoint, outcome in self._pictures.finished():
            drawn = _step_of(checkpoint)
            if isinstance(outcome, str):
                self.problem(f"pictures.step_{drawn}", outcome)
                continue
            for name, png in outcome.items():
                self._tracker.log_picture(png, f"batch/{name}", step=drawn)
        # Not before the first step, for which every core is needed.
        if step < 1:
            return
        if not self._is_start_drawn:
            self._is_start_drawn = True
            self._pictures.start(None)
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        self._cluster.follow()
        total, free = ray.cluster_resources(), ray.available_resources()
        name = "object_store_memory"
        held_gb = (total.get(name, 0.0) - free.get(name, 0.0)) / 1e9
        self._tracker.log_metrics({"memory/object_store_gb": held_gb}, step=step)

    def training_ended(self, spool: Path) -> None:
        """Send the metrics that rank 0 could not send."""
        if spool.is_file():
            send = functools.partial(send_spool, self._tracker.run, spool)
            self._tracker.queue.add(f"the steps in {spool}", send)

    def describe(self, state: str) -> None:
        """Write the run's description, and name the evaluations that failed in a tag."""
        self.note("mlflow.note.content", self.description.text(state))
        if failed := self.description.failed:
            self.note("clippo.failed_evaluations", ", ".join(failed))

    def note(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._tracker.set_tag(key, value)

    def problem(self, name: str, message: str) -> None:
        """Note something that went wrong beside training."""
        self.note(f"clippo.problem.{name}", message)

    def finish(self, status: str, state: str) -> list[str]:
        """End the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            state: the tag that says how it ended.

        Returns:
            The names of what MLflow did not take.
        """
        self._cluster.stop()
        self._tracker.set_tag("clippo.state", state)
        self.describe(state)
        return self._tracker.finish(status)


def _step_of(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else checkpoint_step(Location.of(checkpoint).name) or 0


def _evaluated_data(report: EvaluationReport) -> DataSet:
    """Return the data set of an evaluation; a part of one counts as another data set."""
    result, limit = report.result, report.result.get("limit")
    digest = result["source_digest"] + ("" if limit is None else f"-first-{limit}")
    return DataSet(result["source"], digest, report.benchmark.source)


class _PictureTasks:
    """Draws the batches of checkpoints, in one Ray task at a time, of low priority."""

    def __init__(self, spec: StreamSpec, config: RunConfig) -> None:
        self._spec, self._config = spec, config
        # No CPU of their own: they must not wait for one where training has taken them all.
        self._task = ray.remote(max_calls=1)(_draw_beside).options(
            name="draw_batch", num_cpus=0, max_retries=1
        )
        # Places of checkpoints; None stands for the start of training.
        self._running: dict[Any, str | None] = {}
        self._next: list[str | None] = []

    @property
    def checkpoints(self) -> tuple[str | None, ...]:
        """Return the checkpoints that are read, or will be."""
        return (*self._running.values(), *self._next)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def start(self, checkpoint: str | None) -> None:
        """Draw a checkpoint's batch, or have it wait; the newest that waits is drawn next."""
        self._next = [checkpoint]
        self._start_next()

    def _start_next(self) -> None:
        if self._next and not self._running:
            checkpoint = self._next.pop()
            self._running[self._task.remote(self._spec, self._config, checkpoint)] = checkpoint

    def finished(self) -> list[tuple[str | None, Mapping[str, bytes] | str]]:
        """Return checkpoints and their pictures, or why there are none."""
        done = ray.wait(list(self._running), timeout=0)[0] if self._running else []
        ended = [(self._running.pop(reference), _outcome_of(reference)) for reference in done]
        self._start_next()
        return ended


def _draw_beside(spec: StreamSpec, config: RunConfig, checkpoint: str | None) -> dict[str, bytes]:
    """Draw in a process of its own, at a lower priority than ranks."""
    os.nice(NICE_BESIDE_RANKS)
    return draw_batch(spec, config, checkpoint)


def _outcome_of(reference: Any) -> Mapping[str, bytes] | str:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return str(getattr(error, "cause", None) or error)
