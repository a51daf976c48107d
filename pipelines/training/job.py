"""What the ranks of an attempt are given, and the stream that feeds them.

Two of Ray's own processes load this module before the first step. They do without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray.train

from clippo_core.config import ClassifierConfig
from pipelines.config.settings import RunConfig
from pipelines.runtime.placement import Placement
from pipelines.runtime.run_checkpoints import first_step
from pipelines.runtime.storage import Location
from pipelines.stream.batch import StreamSpec
from pipelines.stream.stream import (
    DATASET,
    StreamRange,
    execution_options,
    steps_per_unit,
    stream_dataset,
)


@dataclass(frozen=True)
class WorkerJob:
    """What the driver gives to every rank."""

    config: RunConfig
    run: Location
    attempt: str
    stream: StreamSpec
    monitor: Any
    classifier: ClassifierConfig | None = None
    """Of fine-tuning."""


class StreamDataConfig(ray.train.DataConfig):
    """Makes the stream at each start of the ranks: from where they are, for all of them."""

    def __init__(self, job: WorkerJob, placement: Placement) -> None:
        """Of one attempt."""
        super().__init__(execution_options=execution_options(placement.renderer))
        self._job, self._placement = job, placement

    def configure(
        self,
        datasets: Any,  # noqa: ARG002 - a stand-in
        world_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Ray's hook; called anew for each group of ranks."""
        job, config = self._job, self._job.config
        steps = StreamRange(
            first_step(job.run),
            config.train.steps,
            world_size,
            steps_per_unit=steps_per_unit(
                job.stream, world_size, wanted=config.data.steps_per_task
            ),
        )
        renderer = self._placement.renderer
        dataset = stream_dataset(
            job.stream, steps, config.scaling, selector=renderer, beside_ranks=renderer is None
        )
        return super().configure({DATASET: dataset}, world_size, *args, **kwargs)
