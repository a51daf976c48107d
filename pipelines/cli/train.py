"""`train`: run a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli.configs import load_base, parse, take_first
from pipelines.cli.dry_run import print_plan
from pipelines.ingest.prepare.registry import prepare_missing
from pipelines.resolve import resolve
from pipelines.schema import RunConfig


@dataclass(frozen=True)
class TrainArguments:
    """Train a model."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The preset with these overrides."""
    dry_run: bool = False
    """Check the config and the data, print what would be done, and stop."""


def run(argv: list[str]) -> None:
    """Train; the last line is the checkpoint."""
    name, rest = take_first(argv, command="train", what="a preset or a .json file")
    default = TrainArguments(load_base(name))
    arguments = parse(TrainArguments, rest, command="train", default=default)
    evaluated = [task.partition(":")[2] for task in arguments.config.evaluation.tasks]
    prepare_missing([*arguments.config.data.sources, *evaluated])
    resolved = resolve(arguments.config)
    if arguments.dry_run:
        print_plan(resolved)
        return
    # Here, because Ray takes seconds to import and a wrong flag should be told of at once.
    from pipelines.cli.summary import print_summary
    from pipelines.training.driver import train

    print(f"run {resolved.run.uri}")
    print_summary(train(resolved))
