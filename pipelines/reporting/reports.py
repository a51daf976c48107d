"""How an evaluation ended: the record that tasks return, files keep and MLflow is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.config.settings import EvaluationOptions
from pipelines.runtime.storage import Location

#: What stands for the data set where there is none.
WEIGHTS = "weights"
#: Names that folders of many data sets have.
_SPLITS = ("train", "val", "dev", "test")
#: Of results; those of another one are not compared, and measured anew.
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
        """What to call the data set by its place alone, since it may not be there."""
        place = Location(self.source)
        if place.name in _SPLITS:
            return f"{place.parent.name}-{place.name}"
        return place.name or WEIGHTS


@dataclass(frozen=True)
class EvaluationReport:
    """How an evaluation ended.

    Attributes:
        status: "ok", or what went wrong.
        result: numbers and what they rest on, as JSON; empty unless ok.
        message: of the failure.
        seconds: from its start to its end, waiting for a CPU included.
        pictures: PNG files to look at, by name.
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
        """Such as "zero_shot/fashion_mnist-test", for files and charts."""
        data_set = self.result.get("source") or self.benchmark.place_name
        return f"{self.benchmark.task}/{data_set}"


def options_json(options: EvaluationOptions) -> dict[str, Any]:
    """Options as they come back from JSON; `blank` only where a side was left out."""
    found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    if options.blank is None:
        del found["blank"]
    return found


def short_digest(identity: str) -> str:
    """A model's identity, as short as the digest of a data set."""
    return identity.removeprefix("sha256:")[:16]
