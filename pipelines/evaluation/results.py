"""The results of evaluations, and the checks of data sets before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from clippo_core.errors import SampleError
from clippo_core.evaluation.scores import Interval, mean_interval
from clippo_core.evaluation.zero_shot import ZeroShotResult
from pipelines.datasets.manifest import SampleKind, is_prepared
from pipelines.datasets.sources import Source, open_source
from pipelines.figures.sheets import confusion_matrix

#: Scores of answering without any knowledge, by metric: {"accuracy": {"chance": 0.1}}.
Floors = dict[str, dict[str, float]]
Pictures = Mapping[str, UInt8[np.ndarray, "height_px width_px 3"]]
#: Name of the data set beside a test set from which evaluations learn.
TRAINING_SET = "train"
#: Kinds of data sets that have pictures.
WITH_PICTURES: Sequence[SampleKind] = ("image-text", "image-question")


@dataclass(frozen=True, eq=False)
class TaskResult:
    """Numbers and pictures of an evaluation.

    Attributes:
        metrics: values by name; the one that counts comes first.
        num_samples: number of samples that took part.
        num_rejected: number of pictures that could not be decoded.
        floors: the scores of answering without any knowledge, by name, for each metric.
        intervals: the 95 % interval of each metric that depends on the choice of samples.
        details: further JSON, such as accuracy per class.
        pictures: pictures for people to look at, by name.
        also_read: digests of data sets that were read beside the source, by URI.
        less_is_better: names of the metrics of which lower values are better.
    """

    metrics: dict[str, float]
    num_samples: int
    num_rejected: int = 0
    floors: Floors = field(default_factory=Floors)
    intervals: dict[str, Interval] = field(default_factory=dict[str, Interval])
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    pictures: Pictures = field(default_factory=dict[str, Any])
    also_read: dict[str, str] = field(default_factory=dict[str, str])
    less_is_better: tuple[str, ...] = ()


def classified(
    result: ZeroShotResult,
    source: Source,
    names: Sequence[str],
    *,
    num_rejected: int = 0,
    details: Mapping[str, Any],
    pictures: Pictures | None = None,
) -> TaskResult:
    """Report the accuracy of any classification, as a whole and per class, and its confusions.

    Args:
        result: the classification.
        source: the data set that was classified.
        names: names of the classes.
        num_rejected: number of pictures that could not be decoded.
        details: further details of the result.
        pictures: pictures to show beside the confusion matrix.
    """
    confusion = result.confusion
    right = confusion.diagonal() / confusion.sum(axis=1).clip(min=1)
    title = f"{source.name}: class (row) taken for (column)"
    return TaskResult(
        metrics={"accuracy": result.accuracy, "mean_class_accuracy": result.mean_class_accuracy},
        num_samples=len(result.labels),
        num_rejected=num_rejected,
        floors={
            "accuracy": result.floors,
            "mean_class_accuracy": {"chance": result.floors["chance"]},
        },
        intervals={"accuracy": result.interval},
        details={
            **details,
            "accuracy_per_class": dict(zip(names, right.tolist(), strict=True)),
            "confusion": confusion.tolist(),
        },
        pictures={**(pictures or {}), "confusion": confusion_matrix(confusion, names, title=title)},
    )


def language_means(
    columns: Mapping[str, Float[np.ndarray, " language"]],
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Average metrics over languages.

    Args:
        columns: values of each metric, one for each language.

    Returns:
        The means, with the number of languages, and their intervals by drawing languages again.
    """
    means = {name: float(values.mean()) for name, values in columns.items()}
    num_languages = float(len(next(iter(columns.values()))))
    intervals = {name: mean_interval(values) for name, values in columns.items()}
    return means | {"languages": num_languages}, intervals


def require_kind(source: Source, task: str, kinds: Sequence[SampleKind]) -> None:
    """Make sure that a data set is of a kind that an evaluation reads.

    Raises:
        SampleError: if it is not.
    """
    kind = source.manifest.kind
    if kind not in kinds:
        raise SampleError(f"{source.name} holds {kind} samples; {task} needs {' or '.join(kinds)}")


def training_set_beside(source: Source, names: Sequence[str], *, task: str) -> Source:
    """Return the training set beside a test set, which has the same classes.

    Args:
        source: the test set.
        names: names of its classes.
        task: the evaluation that needs it.

    Raises:
        SampleError: if there is no such set, or it has other classes.
    """
    place = source.folder.parent / TRAINING_SET
    if place == source.folder or not is_prepared(place):
        raise SampleError(
            f"{source.name} has no training set beside it, which {task} learns from: {place.uri} "
            f"is {'the set itself' if place == source.folder else 'none'}; name a test set, e.g. "
            f"{task}:NAME/test"
        )
    training = open_source(place.uri)
    if training.manifest.class_names != tuple(names):
        raise SampleError(f"{training.name} has other classes than {source.name}")
    return training


def class_names_of(source: Source, task: str) -> tuple[str, ...]:
    """Return the names of a data set's classes.

    Raises:
        SampleError: if it has none.
    """
    names = source.manifest.class_names
    if not names:
        raise SampleError(f"{source.name} has no class names; {task} needs a set with classes")
    return names


def labels_of(source: Source, class_ids: Sequence[int | None]) -> Int64[np.ndarray, " sample"]:
    """Return the samples' classes as an array.

    Raises:
        SampleError: if a sample has none.
    """
    return np.array(_known(source, class_ids, "class"), np.int64)


def scores_of(source: Source, scores: Sequence[float | None]) -> Float64[np.ndarray, " sample"]:
    """Return the samples' scores as an array.

    Raises:
        SampleError: if a sample has none.
    """
    hint = "; expected how alike people find the texts of each"
    return np.array(_known(source, scores, "score", hint), np.float64)


def _known(
    source: Source, values: Sequence[float | None], what: str, hint: str = ""
) -> list[float]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        missing = f"{len(values) - len(known)} of them{hint}"
        raise SampleError(f"{source.name} has samples without a {what}, {missing}")
    return known
