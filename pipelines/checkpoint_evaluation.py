"""Benchmarks of a checkpoint, run as Ray tasks, written, printed, and logged where it belongs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config.resolution import run_of
from pipelines.config.settings import EvaluationConfig, EvaluationOptions
from pipelines.evaluation.tasks import EvaluationTasks, parse_benchmark
from pipelines.reporting.reports import Benchmark, EvaluationReport
from pipelines.reporting.stored import result_lines, write_report
from pipelines.runtime.progress import progress
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.run_checkpoints import checkpoint_step
from pipelines.runtime.storage import Location
from pipelines.tracking.evaluation_runs import log_evaluation
from pipelines.tracking.mlflow_client import TrackedRun
from pipelines.tracking.mlflow_run import TRACKED_FILE, RunTracker


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint, how it is evaluated, and the folder of its results."""

    checkpoint: Location
    config: EvaluationConfig
    options: EvaluationOptions
    folder: Location


def evaluate_checkpoint(
    checkpoint: Location, config: EvaluationConfig, folder: Location
) -> list[EvaluationReport]:
    """Run a config's benchmarks on a checkpoint; results are written to a folder and printed."""
    evaluated = Evaluated(checkpoint, config, EvaluationOptions.of(config), folder)
    return evaluate(evaluated, [parse_benchmark(text) for text in config.tasks])


def evaluate(evaluated: Evaluated, benchmarks: Sequence[Benchmark]) -> list[EvaluationReport]:
    """Run benchmarks; each is written, printed and told to MLflow as it ends."""
    reports: list[EvaluationReport] = []
    checkpoint, config = evaluated.checkpoint, evaluated.config
    cpus, gpus = config.cpus, config.gpus
    with ray_session(cpus=cpus, gpus=gpus):
        tasks = EvaluationTasks(
            benchmarks, evaluated.options, cpus=cpus, gpus=gpus, timeout_s=config.timeout_s
        )
        tasks.start(checkpoint.uri)
        # After the tasks were started: importing MLflow takes seconds.
        tracker = _tracker_of(run_of(checkpoint))
        with progress("evaluating", unit="task", total=len(benchmarks)) as bar:
            while tasks.num_running:
                for report in tasks.finished(wait_s=0.5):
                    bar.update()
                    reports.append(report)
                    write_report(report, evaluated.folder)
                    if tracker is not None:
                        step = checkpoint_step(checkpoint.name) or 0
                        log_evaluation(tracker, report, step=step)
                    if report.status == "ok":
                        print("\n".join(result_lines(report)))
    for what in tracker.close() if tracker is not None else ():
        print(f"MLflow did not take {what}", file=sys.stderr)
    return reports


def _tracker_of(run_folder: Location | None) -> RunTracker | None:
    """Return the MLflow run that trained the checkpoint, below which the results are logged."""
    if run_folder is None or not (run_folder / TRACKED_FILE).exists():
        return None
    return RunTracker(TrackedRun(**(run_folder / TRACKED_FILE).read_json()))
