"""What an evaluation is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clippo_core.errors import SampleError
from clippo_core.evaluation.uncertainty import Interval
from pipelines.datasets.manifest import SampleKind
from pipelines.datasets.sources import Source

#: By metric, then by what knows nothing, such as {"accuracy": {"chance": 0.1}}.
Floors = dict[str, dict[str, float]]
Pictures = Mapping[str, UInt8[np.ndarray, "height_px width_px 3"]]


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What an evaluation found.

    Attributes:
        metrics: by name, the one that counts first.
        num_samples: that took part.
        num_rejected: pictures that could not be decoded.
        floors: what something that knows nothing gets, for each metric that has such a floor.
        intervals: 95 %, for each metric that samples decide.
        details: further JSON, such as accuracy per class.
        pictures: something to look at, by name.
        also_read: digests of data sets that were read beside the source, by URI.
    """

    metrics: dict[str, float]
    num_samples: int
    num_rejected: int = 0
    floors: Floors = field(default_factory=Floors)
    intervals: dict[str, Interval] = field(default_factory=dict[str, Interval])
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    pictures: Pictures = field(default_factory=dict[str, Any])
    also_read: dict[str, str] = field(default_factory=dict[str, str])


def require_kind(source: Source, task: str, kinds: Sequence[SampleKind]) -> None:
    """Make sure that a data set is of a kind that an evaluation reads.

    Raises:
        SampleError: if it is not.
    """
    kind = source.manifest.kind
    if kind not in kinds:
        raise SampleError(f"{source.name} holds {kind} samples; {task} needs {' or '.join(kinds)}")


def require_pictures(source: Source, task: str) -> None:
    """Make sure that a data set has pictures.

    Raises:
        SampleError: if it is one of texts.
    """
    require_kind(source, task, ("image-text", "image-question"))


def class_names_of(source: Source, task: str) -> tuple[str, ...]:
    """The classes of a data set.

    Raises:
        SampleError: if it has none.
    """
    names = source.manifest.class_names
    if not names:
        raise SampleError(f"{source.name} has no class names; {task} needs a set with classes")
    return names


def labels_of(source: Source, class_ids: Sequence[int | None]) -> np.ndarray[Any, Any]:
    """The samples' classes as an array.

    Raises:
        SampleError: if a sample has none.
    """
    known = [class_id for class_id in class_ids if class_id is not None]
    if len(known) < len(class_ids):
        missing = len(class_ids) - len(known)
        raise SampleError(f"{source.name} has samples without a class, {missing} of them")
    return np.array(known, np.int64)
