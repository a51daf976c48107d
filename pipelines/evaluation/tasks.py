"""Evaluations by name, as Ray tasks: each (checkpoint, benchmark) is one, with its own deadline.

A missing data set, a crash or a hang fails that task and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ray
import ray.exceptions

from clippo_core.checkpoints import load_checkpoint, model_identity
from clippo_core.config import FineTuningTask
from clippo_core.errors import ConfigError, SampleError, did_you_mean
from clippo_core.modeling import PairModel
from clippo_core.training.precision import autocast, find_precision
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.manifest import SampleKind
from pipelines.datasets.sources import Source, locate_source, open_source
from pipelines.evaluation.fine_tuned_tasks import glue, text_classification, vqa
from pipelines.evaluation.model_tasks import modality_gap_of_pairs, patch_filters_of
from pipelines.evaluation.multilingual_tasks import multilingual_zero_shot
from pipelines.evaluation.picture_tasks import few_shot_linear, typographic, zero_shot
from pipelines.evaluation.results import (
    WITH_PICTURES,
    TaskResult,
    class_names_of,
    require_kind,
)
from pipelines.evaluation.retrieval_tasks import (
    behaviour,
    bitext_retrieval,
    multilingual_retrieval,
    retrieval,
)
from pipelines.evaluation.text_tasks import (
    sequence_length,
    text_probe,
    text_similarity,
    text_zero_shot,
)
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

Evaluation = Callable[[PairModel, Source, EvaluationOptions], TaskResult]

#: Evaluations on a data set.
EVALUATIONS: dict[str, Evaluation] = {
    "zero_shot": zero_shot,
    "few_shot": few_shot_linear,
    "typographic": typographic,
    "retrieval": retrieval,
    "multilingual_zero_shot": multilingual_zero_shot,
    "multilingual_retrieval": multilingual_retrieval,
    "behaviour": behaviour,
    "modality_gap": modality_gap_of_pairs,
    "bitext_retrieval": bitext_retrieval,
    "text_zero_shot": text_zero_shot,
    "text_probe": text_probe,
    "text_similarity": text_similarity,
    "sequence_length": sequence_length,
    "text_classification": text_classification,
    "glue": glue,
    "vqa": vqa,
}
#: Kinds of samples that each of them reads; all kinds where it is not named.
_KINDS: dict[str, Sequence[SampleKind]] = {
    **dict.fromkeys(
        ("zero_shot", "few_shot", "typographic", "multilingual_zero_shot"), WITH_PICTURES
    ),
    **dict.fromkeys(
        ("retrieval", "multilingual_retrieval", "behaviour", "modality_gap"), ("image-text",)
    ),
    "bitext_retrieval": ("parallel-texts",),
    **dict.fromkeys(
        ("text_zero_shot", "text_probe", "text_similarity", "text_classification", "glue"),
        ("labelled-text",),
    ),
    "vqa": ("image-question",),
}
_WITH_CLASSES = ("zero_shot", "few_shot", "typographic", "text_zero_shot", "text_probe")
#: Evaluations of the model alone.
WITHOUT_DATA: dict[str, Callable[[PairModel], TaskResult]] = {"patch_filters": patch_filters_of}


def find_evaluation(name: str) -> Evaluation:
    """Return the evaluation of that name among those that read a data set.

    Raises:
        ConfigError: if there is none.
    """
    if name not in EVALUATIONS:
        known = sorted({*EVALUATIONS, *WITHOUT_DATA})
        raise ConfigError(
            f"no evaluation is called {name!r}; there are {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        )
    return EVALUATIONS[name]


def parse_benchmark(text: str) -> Benchmark:
    """Parse a benchmark from TASK:SOURCE; the source becomes a place that any machine can find.

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


def check_benchmark(benchmark: Benchmark, trained: FineTuningTask | None) -> None:
    """Make sure that an evaluation's data set is there and of the kind that it reads.

    Args:
        benchmark: the evaluation.
        trained: the task that the model is fine-tuned on; None: it is trained on pairs.

    Raises:
        ConfigError: if it is for models that are fine-tuned on another task.
        SampleError: if the data set is missing, or cannot feed it.
    """
    task = benchmark.task
    if task in get_args(FineTuningTask) and task != trained:
        raise ConfigError(
            f"{task} is for models that are fine-tuned on it; take it out of evaluation.tasks, or "
            f"use python -m pipelines finetune {task}"
        )
    if not benchmark.source:
        return
    source = open_source(benchmark.source)
    if task in _KINDS:
        require_kind(source, task, _KINDS[task])
    if task in _WITH_CLASSES:
        class_names_of(source, task)
    if task == "multilingual_zero_shot" and not source.manifest.class_captions:
        raise SampleError(
            f"{source.name} has no names of classes in several languages; {task} needs them: name "
            "fashion_mnist/test or icons/small/heldout"
        )


def evaluate(checkpoint: str, benchmark: Benchmark, options: EvaluationOptions) -> EvaluationReport:
    """Run one evaluation in this process, on the GPU that Ray has set aside, or else the CPU.

    On a GPU that has bfloat16, matrices are multiplied in it, as in training.
    """
    started = time.monotonic()
    # Before the model, which may take long: most mistakes are in the name of the data.
    source = open_source(benchmark.source) if benchmark.source else None
    with fetched(Location.of(checkpoint)) as path:
        model = load_checkpoint(path)
    identity = model_identity(model)
    device = model.to(task_device()).device
    precision = find_precision("auto", device)
    with autocast(device, precision):
        if source is None:
            found, name = WITHOUT_DATA[benchmark.task](model), WEIGHTS
        else:
            found, name = find_evaluation(benchmark.task)(model, source, options), source.name
    seconds = round(time.monotonic() - started, 2)
    result = {
        "format_version": RESULT_FORMAT,
        "task": benchmark.task,
        "source": name,
        "source_digest": short_digest(identity) if source is None else source.manifest.digest,
        "checkpoint": checkpoint,
        "model": identity,
        "precision": precision,
        "options": options_json(options),
        "limit": None if source is None else options.limit,
        "metrics": found.metrics,
        "less_is_better": list(found.less_is_better),
        "floors": found.floors,
        "intervals": {metric: list(interval) for metric, interval in found.intervals.items()},
        "num_samples": found.num_samples,
        "num_rejected": found.num_rejected,
        "details": found.details,
        "pictures": list(found.pictures),
        "also_read": found.also_read,
        "seconds": seconds,
    }
    pictures = encode_pngs(found.pictures)
    return EvaluationReport(checkpoint, benchmark, "ok", result, seconds=seconds, pictures=pictures)


def _evaluate_beside(
    checkpoint: str, benchmark: Benchmark, options: EvaluationOptions
) -> EvaluationReport:
    """Evaluate in a process of its own, at a lower priority than ranks."""
    os.nice(NICE_BESIDE_RANKS)
    return evaluate(checkpoint, benchmark, options)


@dataclass(frozen=True)
class _Running:
    checkpoint: str
    benchmark: Benchmark
    started: float

    def failed(self, status: Literal["failed", "timeout"], message: str) -> EvaluationReport:
        seconds = time.monotonic() - self.started
        return EvaluationReport(self.checkpoint, self.benchmark, status, {}, message, seconds)


class EvaluationTasks:
    """Starts evaluations and gathers their reports; the caller decides whether to wait."""

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        options: EvaluationOptions,
        *,
        cpus: float,
        gpus: float = 0,
        timeout_s: float,
    ) -> None:
        """Take the benchmarks of every checkpoint, and the limits of one evaluation."""
        self._benchmarks, self._options, self._timeout_s = benchmarks, options, timeout_s
        # One retry, for a worker that is killed; Ray does not retry what raises.
        self._task = ray.remote(max_calls=1)(_evaluate_beside).options(
            name="evaluate", num_cpus=cpus, num_gpus=gpus, max_retries=1
        )
        self._running: dict[Any, _Running] = {}

    def start(self, checkpoint: str) -> None:
        """Start all benchmarks on a checkpoint."""
        for benchmark in self._benchmarks:
            reference = self._task.remote(checkpoint, benchmark, self._options)
            self._running[reference] = _Running(checkpoint, benchmark, time.monotonic())

    @property
    def checkpoints_in_use(self) -> set[str]:
        """Return the checkpoints under evaluation, which must not be removed yet."""
        return {running.checkpoint for running in self._running.values()}

    @property
    def num_running(self) -> int:
        """Return how many evaluations have not ended."""
        return len(self._running)

    def finished(self, *, wait_s: float = 0.0) -> list[EvaluationReport]:
        """Return reports since the last call; wait at most `wait_s` seconds for one to end."""
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), timeout=wait_s)
        ended = [(ref, self._running.pop(ref)) for ref in done]
        reports = [_report_of(ref, running) for ref, running in ended]
        return reports + self._stop_overdue()

    def _stop_overdue(self) -> list[EvaluationReport]:
        message = f"not done after {self._timeout_s:g} s (evaluation.timeout-s)"
        latest_start, reports = time.monotonic() - self._timeout_s, []
        for reference, running in list(self._running.items()):
            if running.started < latest_start:
                ray.cancel(reference, force=True)
                del self._running[reference]
                reports.append(running.failed("timeout", message))
        return reports


def _report_of(reference: Any, running: _Running) -> EvaluationReport:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return running.failed("failed", str(error.cause or error))
    except ray.exceptions.RayError as error:
        return running.failed("failed", f"{type(error).__name__}: {error}")
