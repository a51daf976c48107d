"""Evaluations as Ray tasks: each (checkpoint, benchmark) has its own resources and its own end.

A missing data set, a crash or a hang fails that task and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray
import ray.exceptions

from clippo_core.checkpoints import load_checkpoint, model_identity
from pipelines.background import in_background
from pipelines.checkpoints import fetched
from pipelines.evaluating.registry import EvaluationOptions, find_evaluation
from pipelines.ingest.sources import locate_source, open_source
from pipelines.storage import Location
from pipelines.tracking.figures import encode_pngs


@dataclass(frozen=True)
class Benchmark:
    """An evaluation on a data set, as "zero_shot:fashion_mnist/test" names it."""

    task: str
    source: str

    @staticmethod
    def parse(text: str) -> Benchmark:
        """From TASK:SOURCE; the source becomes a place that any machine can find.

        Raises:
            ConfigError: if there is no such task.
        """
        task, _, source = text.partition(":")
        find_evaluation(task)
        return Benchmark(task, locate_source(source).uri)


@dataclass(frozen=True)
class EvaluationReport:
    """How an evaluation ended.

    Attributes:
        status: "ok", or what went wrong.
        result: numbers and what they rest on, as JSON; empty unless ok.
        message: of the failure.
        seconds: from its start to its end, waiting for a CPU included.
        pictures: PNG files to look at, by name.
    """

    checkpoint: str
    benchmark: Benchmark
    status: Literal["ok", "failed", "timeout"]
    result: dict[str, Any]
    message: str = ""
    seconds: float = 0.0
    pictures: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def name(self) -> str:
        """Such as "zero_shot/fashion_mnist-test", for files and charts."""
        data_set = self.result.get("source") or Location.of(self.benchmark.source).name
        return f"{self.benchmark.task}/{data_set}"


def evaluate(checkpoint: str, benchmark: Benchmark, options: EvaluationOptions) -> EvaluationReport:
    """Run one evaluation in this process."""
    started = time.monotonic()
    source = open_source(benchmark.source)
    with fetched(Location.of(checkpoint)) as path:
        model = load_checkpoint(path)
    found = find_evaluation(benchmark.task)(model, source, options)
    result = {
        "task": benchmark.task,
        "source": source.name,
        "source_digest": source.manifest.digest,
        "checkpoint": checkpoint,
        "model": model_identity(model),
        "metrics": found.metrics,
        "limit": options.limit,
        "num_samples": found.num_samples,
        "num_rejected": found.num_rejected,
        "details": found.details,
        "seconds": round(time.monotonic() - started, 2),
    }
    return EvaluationReport(
        checkpoint,
        benchmark,
        "ok",
        result,
        seconds=result["seconds"],
        pictures=encode_pngs(found.pictures),
    )


def _evaluate_in_background(
    checkpoint: str, benchmark: Benchmark, options: EvaluationOptions
) -> EvaluationReport:
    return in_background(evaluate, checkpoint, benchmark, options)


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
        timeout_s: float,
    ) -> None:
        """Of the benchmarks that every checkpoint gets."""
        self._benchmarks, self._options, self._timeout_s = benchmarks, options, timeout_s
        # One retry, for a worker that is killed; an exception would only come again.
        self._task = ray.remote(_evaluate_in_background).options(num_cpus=cpus, max_retries=1)
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


def write_report(report: EvaluationReport, folder: Location) -> Location:
    """Store a report: `folder/TASK/SOURCE.json`, and its pictures beside it."""
    place = folder / f"{file_name(report)}.json"
    content = report.result or {"checkpoint": report.checkpoint, **asdict(report.benchmark)}
    place.write_json({"status": report.status, "message": report.message} | content)
    for name, png in report.pictures.items():
        (folder / f"{file_name(report)}-{name}.png").write_bytes(png)
    return place


def result_lines(report: EvaluationReport) -> list[str]:
    """What a report that is ok says, for a terminal."""
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in report.result["metrics"].items())
    lines = [f"{report.name}: {numbers} ({report.result['num_samples']} samples)"]
    per_language = report.result["details"].get("per_language", {})
    if per_language:
        names = list(next(iter(per_language.values())))
        lines.append("  ".join(["language".ljust(10), *names]))
        for language, found in per_language.items():
            cells = [f"{found[name]:.4g}".rjust(len(name)) for name in names]
            lines.append("  ".join([language.ljust(10), *cells]))
    return lines


def file_name(report: EvaluationReport) -> str:
    """The report's name; one of part of a data set must not pass for, or replace, that of all."""
    limit = report.result.get("limit")
    return report.name if limit is None else f"{report.name}-first-{limit}"
