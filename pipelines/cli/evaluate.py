"""`evaluate` runs benchmarks of a checkpoint, each as a Ray task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from clippo_core.checkpoints import load_checkpoint, model_identity
from clippo_core.errors import ConfigError, SampleError
from pipelines.checkpoint_evaluation import Evaluated, evaluate
from pipelines.cli.arguments import CHECKPOINT, asks_for_help, parse, take_checkpoint
from pipelines.config.resolution import read_run_config, run_of
from pipelines.config.settings import Blank, EvaluationConfig, EvaluationOptions
from pipelines.evaluation.tasks import parse_benchmark
from pipelines.reporting.reports import Benchmark, EvaluationReport
from pipelines.reporting.stored import file_name, result_lines, stored_report
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location
from pipelines.tracking.models import find_model, is_registered, model_name


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a checkpoint."""

    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    """The benchmarks and how they run; by default those of the checkpoint's run."""
    out: str | None = None
    """Folder for the results; None: evaluations/ in the checkpoint's run, or beside it; of a
    registered model: in the current folder."""
    again: bool = False
    """Measure again even where a result of the same weights, data and options is stored."""
    blank: Blank | None = None
    """Ask visual questions without their pictures, or show the pictures without the questions."""


def run(argv: list[str]) -> None:
    """Evaluate a checkpoint; the last lines are the result files."""
    name, rest = take_checkpoint(argv, command="evaluate")
    is_help = asks_for_help(rest)
    checkpoint = Location.of(name) if is_help else find_model(name)
    default = EvaluateArguments(_evaluation_of(None if is_help else run_of(checkpoint)))
    arguments = parse(
        EvaluateArguments, rest, command="evaluate", default=default, subject=CHECKPOINT
    )
    config = arguments.evaluation
    if not config.tasks:
        raise ConfigError("name what to evaluate: --tasks zero_shot:DATA_SET retrieval:DATA_SET")
    options = EvaluationOptions.of(config, blank=arguments.blank)
    benchmarks = [parse_benchmark(text) for text in config.tasks]
    if arguments.blank is not None:
        _require_questions(benchmarks)
    results = results_folder(name, checkpoint)
    folder = results if arguments.out is None else Location.of(arguments.out)
    evaluated = Evaluated(checkpoint, config, options, folder)
    stored = {} if arguments.again else _stored(evaluated, benchmarks)
    for report in stored.values():
        print("\n".join([*result_lines(report), "  as stored; --again measures anew"]))
    missing = [benchmark for benchmark in benchmarks if benchmark not in stored]
    measured = evaluate(evaluated, missing) if missing else []
    reports = [*stored.values(), *measured]
    failures = [f"{r.name}: {r.status}: {r.message}" for r in reports if r.status != "ok"]
    if failures:
        raise SampleError("\n".join(failures))
    print("\n".join((folder / f"{file_name(report)}.json").uri for report in reports))


def _require_questions(benchmarks: Sequence[Benchmark]) -> None:
    others = sorted({benchmark.task for benchmark in benchmarks} - {"vqa"})
    if others:
        raise ConfigError(
            f"--blank is for vqa, but {', '.join(others)} is to be measured as well; name the "
            "tasks: --tasks vqa:DATA_SET"
        )


def results_folder(name: str, checkpoint: Location) -> Location:
    """Return the folder for a checkpoint's results, unless `--out` names another one.

    Args:
        name: the name that a person gave the checkpoint.
        checkpoint: the place that `find_model` found under that name.
    """
    beside = Location.of(".") if is_registered(name) else run_of(checkpoint) or checkpoint.parent
    return beside / "evaluations" / model_name(name, checkpoint).rpartition("/")[2]


def _stored(
    evaluated: Evaluated, benchmarks: Sequence[Benchmark]
) -> dict[Benchmark, EvaluationReport]:
    """Return the results that are there already."""
    checkpoint, options, folder = evaluated.checkpoint, evaluated.options, evaluated.folder
    # Looked at first: most checkpoints have no results, and then the weights need not be read.
    if not any(name.endswith(".json") for name in folder.files()):
        return {}
    with fetched(checkpoint) as path:
        identity = model_identity(load_checkpoint(path))
    found = {b: stored_report(checkpoint, identity, b, options, folder) for b in benchmarks}
    return {benchmark: report for benchmark, report in found.items() if report is not None}


def _evaluation_of(run_folder: Location | None) -> EvaluationConfig:
    return EvaluationConfig() if run_folder is None else read_run_config(run_folder).evaluation
