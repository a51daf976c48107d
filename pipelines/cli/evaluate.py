"""`evaluate`: benchmarks of a checkpoint, each a Ray task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from clippo_core.errors import ConfigError, SampleError
from pipelines.cli.configs import parse, take_first
from pipelines.progress import progress
from pipelines.resolve import RUN_FILE, read_run_config
from pipelines.schema import EvaluationConfig
from pipelines.storage import Location
from pipelines.tracking.registered_models import find_model, is_registered, model_name


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a checkpoint."""

    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    """What to evaluate; by default what the checkpoint's run evaluates."""
    out: str | None = None
    """Folder for the results; None: evaluations/ in the checkpoint's run, or beside it; of a
    registered model: in the current folder."""


def run(argv: list[str]) -> None:
    """Evaluate; the last lines are the result files."""
    what = "a checkpoint, a run, a registered model or a big_vision .npz"
    name, rest = take_first(argv, command="evaluate", what=what)
    checkpoint = find_model(name)
    run_folder = run_of(checkpoint)
    default = EvaluateArguments(_evaluation_of(run_folder))
    arguments = parse(EvaluateArguments, rest, command="evaluate", default=default)
    from pipelines.evaluating.registry import EvaluationOptions
    from pipelines.evaluating.tasks import (
        Benchmark,
        EvaluationTasks,
        result_lines,
        write_report,
    )
    from pipelines.ray_session import ray_session

    config = arguments.evaluation
    if not config.tasks:
        raise ConfigError("name what to evaluate: --tasks zero_shot:DATA_SET retrieval:DATA_SET")
    options = EvaluationOptions(templates=config.templates, limit=config.limit)
    benchmarks = [Benchmark.parse(text) for text in config.tasks]
    beside = Location.of(".") if is_registered(name) else run_folder or checkpoint.parent
    results = beside / "evaluations" / model_name(name, checkpoint).rpartition("/")[2]
    folder = results if arguments.out is None else Location.of(arguments.out)
    failures, places = [], []
    with ray_session(cpus=config.cpus):
        tasks = EvaluationTasks(benchmarks, options, cpus=config.cpus, timeout_s=config.timeout_s)
        tasks.start(checkpoint.uri)
        with progress("evaluating", unit="task", total=len(benchmarks)) as bar:
            while tasks.num_running:
                for report in tasks.finished(wait_s=0.5):
                    bar.update()
                    places.append(write_report(report, folder))
                    if report.status == "ok":
                        print("\n".join(result_lines(report)))
                    else:
                        failures.append(f"{report.name}: {report.status}: {report.message}")
    if failures:
        raise SampleError("\n".join(failures))
    print("\n".join(place.uri for place in places))


def run_of(checkpoint: Location) -> Location | None:
    """The run that a checkpoint belongs to, if it is in one."""
    run_folder = checkpoint.parent.parent
    is_in_run = checkpoint.parent.name == "checkpoints" and (run_folder / RUN_FILE).exists()
    return run_folder if is_in_run else None


def _evaluation_of(run_folder: Location | None) -> EvaluationConfig:
    return EvaluationConfig() if run_folder is None else read_run_config(run_folder).evaluation
