"""Reports of evaluations: tasks return them, files keep them, and MLflow is sent them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.config.settings import EvaluationOptions
from pipelines.runtime.storage import Location

#: The name that stands for the data set where there is none.
WEIGHTS = "weights"
#: Names that the folders of many data sets have; such a one is named with its parent folder.
_SPLITS = ("train", "val", "dev", "test")
#: Version of the results' JSON; results of another version are measured anew.
RESULT_FORMAT = 2


@dataclass(frozen=True)
class Benchmark:
    """An evaluation on a data set, as "zero_shot:fashion_mnist/test" names it.

    Attributes:
        task: the evaluation's name.
        source: folder or URI of the data set; "" where the model alone is looked at.
    """

    task: str
    source: str

    @property
    def place_name(self) -> str:
        """Return the data set's name by its place alone, since the data may not be there."""
        place = Location(self.source)
        if place.name in _SPLITS:
            return f"{place.parent.name}-{place.name}"
        return place.name or WEIGHTS


@dataclass(frozen=True)
class EvaluationReport:
    """The end of an evaluation, with its result.

    Attributes:
        status: "ok", or what went wrong.
        result: numbers and what they rest on, as JSON; empty unless ok.
        message: why it failed.
        seconds: time from its start to its end, waiting for a CPU included.
        pictures: PNG files for people to look at, by name.
    """

    checkpoint: str
    benchmark: Benchmark
    status: Literal["ok", "failed", "timeout"]
    result: dict[str, Any]
    message: str = ""
    seconds: float = 0.0
    pictures: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def name(self) -> str:
        """Return task and data set for files and charts, as "zero_shot/fashion_mnist-test"."""
        data_set = self.result.get("source") or self.benchmark.place_name
        return f"{self.benchmark.task}/{data_set}"


def options_json(options: EvaluationOptions) -> dict[str, Any]:
    """Return options as they come back from JSON, with `blank` only where a side was left out."""
    found = json.loads(json.dumps(asdict(options)))
    return {k: v for k, v in found.items() if k != "blank" or v is not None}


def short_digest(identity: str) -> str:
    """Return a model's identity, as short as the digest of a data set."""
    return identity.removeprefix("sha256:")[:16]
