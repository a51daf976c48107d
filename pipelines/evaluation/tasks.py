"""Evaluations as Ray tasks: each (checkpoint, benchmark) has its own resources and its own end.

A missing data set, a crash or a hang fails that task and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from clippo_core.checkpoints import load_checkpoint, model_identity
from clippo_core.errors import ConfigError
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import locate_source, open_source
from pipelines.evaluation.registry import WITHOUT_DATA, find_evaluation
from pipelines.evaluation.results import TaskResult
from pipelines.figures.sheets import encode_pngs
from pipelines.reporting.reports import (
    RESULT_FORMAT,
    WEIGHTS,
    Benchmark,
    EvaluationReport,
    options_json,
    short_digest,
)
from pipelines.runtime.devices import NICE_BESIDE_RANKS, task_device
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location


def parse_benchmark(text: str) -> Benchmark:
    """Read a benchmark from TASK:SOURCE; the source becomes a place that any machine can find.

    Raises:
        ConfigError: if there is no such task, or it needs a data set and has none, or has one and
            needs none.
    """
    task, _, source = text.partition(":")
    if task in WITHOUT_DATA:
        if source:
            raise ConfigError(f"{task} looks at the model alone; name it without {source!r}")
        return Benchmark(task, "")
    find_evaluation(task)
    if not source:
        raise ConfigError(f"{task} needs a data set: {task}:DATA_SET")
    return Benchmark(task, locate_source(source).uri)


def evaluate(checkpoint: str, benchmark: Benchmark, options: EvaluationOptions) -> EvaluationReport:
    """Run one evaluation in this process."""
    started = time.monotonic()
    # Before the model, which may take long: most of what goes wrong is in the data's name.
    source = open_source(benchmark.source) if benchmark.source else None
    with fetched(Location.of(checkpoint)) as path:
        model = load_checkpoint(path)
    identity = model_identity(model)
    model.to(task_device())
    if source is None:
        found, name, digest = WITHOUT_DATA[benchmark.task](model), WEIGHTS, short_digest(identity)
    else:
        found = find_evaluation(benchmark.task)(model, source, options)
        name, digest = source.name, source.manifest.digest
    seconds = round(time.monotonic() - started, 2)
    result = {
        "format_version": RESULT_FORMAT,
        "task": benchmark.task,
        "source": name,
        "source_digest": digest,
        "checkpoint": checkpoint,
        "model": identity,
        "options": options_json(options),
        "limit": options.limit if benchmark.source else None,
        **_numbers(found),
        "seconds": seconds,
    }
    pictures = encode_pngs(found.pictures)
    return EvaluationReport(checkpoint, benchmark, "ok", result, seconds=seconds, pictures=pictures)


def _numbers(found: TaskResult) -> dict[str, Any]:
    return {
        "metrics": found.metrics,
        "floors": found.floors,
        "intervals": {name: list(interval) for name, interval in found.intervals.items()},
        "num_samples": found.num_samples,
        "num_rejected": found.num_rejected,
        "details": found.details,
        "pictures": list(found.pictures),
        "also_read": found.also_read,
    }


def _evaluate_beside(
    checkpoint: str, benchmark: Benchmark, options: EvaluationOptions
) -> EvaluationReport:
    """Evaluate in a process of its own, which takes the CPU time that ranks leave."""
    os.nice(NICE_BESIDE_RANKS)
    return evaluate(checkpoint, benchmark, options)


@dataclass
class _Running:
    checkpoint: str
    benchmark: Benchmark
    started: float
    deadline: float


class EvaluationTasks:
    """Starts evaluations and gathers their ends; waiting for them is the caller's choice."""

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        options: EvaluationOptions,
        *,
        cpus: float,
        gpus: float = 0,
        timeout_s: float,
    ) -> None:
        """Of the benchmarks that every checkpoint gets."""
        self._benchmarks, self._options, self._timeout_s = benchmarks, options, timeout_s
        # One retry, for a worker that is killed; an exception would only come again.
        self._task = ray.remote(max_calls=1)(_evaluate_beside).options(
            name="evaluate", num_cpus=cpus, num_gpus=gpus, max_retries=1
        )
        self._running: dict[Any, _Running] = {}

    def start(self, checkpoint: str) -> None:
        """Start all benchmarks on a checkpoint."""
        for benchmark in self._benchmarks:
            reference = self._task.remote(checkpoint, benchmark, self._options)
            now = time.monotonic()
            deadline = now + self._timeout_s
            self._running[reference] = _Running(checkpoint, benchmark, now, deadline)

    @property
    def checkpoints_in_use(self) -> set[str]:
        """Checkpoints that must not be removed yet."""
        return {running.checkpoint for running in self._running.values()}

    @property
    def num_running(self) -> int:
        """Evaluations that have not ended."""
        return len(self._running)

    def finished(self, *, wait_s: float = 0.0) -> list[EvaluationReport]:
        """What has ended since the last call, waiting at most `wait_s` for something to end."""
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), timeout=wait_s)
        ended = [(ref, self._running.pop(ref)) for ref in done]
        reports = [_report_of(ref, running) for ref, running in ended]
        return reports + self._stop_overdue()

    def _stop_overdue(self) -> list[EvaluationReport]:
        now, reports = time.monotonic(), []
        for reference, running in list(self._running.items()):
            if now > running.deadline:
                ray.cancel(reference, force=True)
                del self._running[reference]
                message = f"not done after {self._timeout_s:g} s (evaluation.timeout-s)"
                reports.append(_failure(running, "timeout", message))
        return reports


def _report_of(reference: Any, running: _Running) -> EvaluationReport:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return _failure(running, "failed", str(error.cause or error))
    except ray.exceptions.RayError as error:
        return _failure(running, "failed", f"{type(error).__name__}: {error}")


def _failure(
    running: _Running, status: Literal["failed", "timeout"], message: str
) -> EvaluationReport:
    seconds = time.monotonic() - running.started
    return EvaluationReport(running.checkpoint, running.benchmark, status, {}, message, seconds)
