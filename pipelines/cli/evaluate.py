"""`evaluate`: benchmarks of a checkpoint, each a Ray task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from clippo_core.errors import SampleError
from pipelines.cli.configs import parse
from pipelines.progress import progress
from pipelines.schema import EvaluationConfig
from pipelines.storage import Location, find_checkpoint


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a checkpoint."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint, a big_vision .npz, or a run (its newest checkpoint); a path or URI."""
    out: str | None = None
    """Folder for the results; None: evaluations/ beside the checkpoint's run."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: EvaluationConfig(tasks=("zero_shot:fashion_mnist/test",))
    )
    """What to evaluate."""


def run(argv: list[str]) -> None:
    """Evaluate; the last lines are the result files."""
    arguments = parse(EvaluateArguments, argv, command="evaluate")
    from pipelines.evaluating.registry import EvaluationOptions
    from pipelines.evaluating.tasks import Benchmark, EvaluationTasks, write_report
    from pipelines.ray_session import ray_session

    checkpoint = find_checkpoint(arguments.checkpoint)
    config = arguments.evaluation
    options = EvaluationOptions(templates=config.templates, limit=config.limit)
    benchmarks = [Benchmark.parse(text) for text in config.tasks]
    folder = _folder(arguments, checkpoint)
    failures, places = [], []
    with ray_session(cpus=config.cpus):
        tasks = EvaluationTasks(benchmarks, options, cpus=config.cpus, timeout_s=config.timeout_s)
        tasks.start(checkpoint.uri)
        with progress("evaluating", unit="task", total=len(benchmarks)) as bar:
            while tasks.checkpoints_in_use:
                for report in tasks.finished(wait_s=0.5):
                    bar.update()
                    places.append(write_report(report, folder))
                    if report.status == "ok":
                        numbers = report.result["metrics"].items()
                        print(f"{report.name}: {', '.join(f'{k} {v:.4f}' for k, v in numbers)}")
                    else:
                        failures.append(f"{report.name}: {report.status}: {report.message}")
    if failures:
        raise SampleError("\n".join(failures))
    print("\n".join(place.uri for place in places))


def _folder(arguments: EvaluateArguments, checkpoint: Location) -> Location:
    if arguments.out is not None:
        return Location.of(arguments.out)
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent / "evaluations" / checkpoint.name
    return checkpoint.parent / "evaluations" / checkpoint.name
