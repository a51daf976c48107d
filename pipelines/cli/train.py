"""`train` runs a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli.arguments import PRESET_OR_FILE, load_base, parse, take_subject
from pipelines.config.settings import RunConfig
from pipelines.datasets.prepare.registry import prepare_missing


@dataclass(frozen=True)
class TrainArguments:
    """Train a model."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The preset with these overrides."""
    dry_run: bool = False
    """Check the config and the data, print what would be done, and stop."""


def run(argv: list[str]) -> None:
    """Train a model; the last line is the checkpoint."""
    name, rest = take_subject(argv, command="train", subject=PRESET_OR_FILE)
    default = TrainArguments(load_base(name, rest))
    arguments = parse(
        TrainArguments, rest, command="train", default=default, subject=PRESET_OR_FILE
    )
    evaluated = [task.partition(":")[2] for task in arguments.config.evaluation.tasks]
    prepare_missing([*arguments.config.data.sources, *evaluated])
    # Imported here, since Ray and torch take seconds and a wrong flag should be told of at once.
    from pipelines.cli.output import print_plan, print_summary
    from pipelines.config.resolution import check_benchmarks, resolve
    from pipelines.training.run import check_start, train

    resolved = resolve(arguments.config)
    check_benchmarks(resolved)
    if arguments.dry_run:
        print_plan(resolved)
        return
    check_start(resolved)
    print(f"run {resolved.run.uri}")
    print_summary(train(resolved))
