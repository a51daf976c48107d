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
from clippo_core.errors import ConfigError
from pipelines.background import BackgroundTask
from pipelines.datasets.sources import locate_source, open_source
from pipelines.evaluation.registry import WITHOUT_DATA, find_evaluation
from pipelines.evaluation.results import EvaluationOptions, TaskResult
from pipelines.figures.sheets import encode_pngs
from pipelines.runtime.devices import task_device
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location

#: What stands for the data set where there is none.
WEIGHTS = "weights"
#: Names that folders of many data sets have.
_SPLITS = ("train", "val", "dev", "test")
#: Of results; those of another one are not compared, and measured anew.
RESULT_FORMAT = 2


@dataclass(frozen=True)
class Benchmark:
    """An evaluation on a data set, as "zero_shot:fashion_mnist/test" names it.

    Attributes:
        task: the evaluation's name.
        source: folder or URI of the data set; "" where the model alone is looked at.
    """

    task: str
    source: str

    @property
    def place_name(self) -> str:
        """What to call the data set by its place alone, since it may not be there."""
        place = Location(self.source)
        if place.name in _SPLITS:
            return f"{place.parent.name}-{place.name}"
        return place.name or WEIGHTS

    @staticmethod
    def parse(text: str) -> Benchmark:
        """From TASK:SOURCE; the source becomes a place that any machine can find.

        Raises:
            ConfigError: if there is no such task, or it needs a data set and has none, or has one
                and needs none.
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
        data_set = self.result.get("source") or self.benchmark.place_name
        return f"{self.benchmark.task}/{data_set}"


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


def options_json(options: EvaluationOptions) -> dict[str, Any]:
    """Options as they come back from JSON; `blank` only where a side was left out."""
    found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    if options.blank is None:
        del found["blank"]
    return found


def short_digest(identity: str) -> str:
    """A model's identity, as short as the digest of a data set."""
    return identity.removeprefix("sha256:")[:16]


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
        self._task = BackgroundTask(evaluate, num_cpus=cpus, num_gpus=gpus)
        self._running: dict[Any, _Running] = {}

    def start(self, checkpoint: str) -> None:
        """Start all benchmarks on a checkpoint."""
        for benchmark in self._benchmarks:
            reference = self._task.start(checkpoint, benchmark, self._options)
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
