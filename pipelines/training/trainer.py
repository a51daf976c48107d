"""The trainer by which Ray Train places ranks, groups them, feeds them, and restarts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from clippo_core.config import ClassifierConfig
from pipelines.config.derived import TextLengths
from pipelines.config.settings import RunConfig
from pipelines.ray_compat import divide_whole_batches
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

#: Seconds between two looks for more ranks, where a run could use more. A resize restarts the ranks
#: from the last checkpoint, so that it should not happen for every node of many that come.
RESIZE_EVERY_S = 60.0
#: Seconds that gloo and NCCL wait for a rank; longer than any step or checkpoint.
_GROUP_TIMEOUT_S = 1800


@dataclass(frozen=True)
class RankJob:
    """All that the driver gives to every rank of an attempt.

    Attributes:
        config: the run's settings, resolved.
        run: the run's folder.
        attempt: the attempt's name, unique over all restarts.
        stream: the stream, as render workers are given it.
        row_s: seconds that a render worker takes to prepare a row, as the driver measured it.
        max_block_bytes: largest block of a render task, by the object stores that there are.
        text_lengths: how many patches, or tokens, the run's texts have.
        device_bytes: memory of each rank's GPU; None: CPUs.
        monitor: the actor through which driver and rank 0 talk.
        classifier: the head of fine-tuning; None: the run trains on pairs.
    """

    config: RunConfig
    run: Location
    attempt: str
    stream: StreamSpec
    row_s: float
    max_block_bytes: float
    text_lengths: TextLengths
    device_bytes: float | None
    monitor: Any
    classifier: ClassifierConfig | None = None

    def steps_per_unit(self, num_ranks: int) -> int:
        """Return how many steps a render task works for, with so many ranks."""
        wanted = self.config.data.steps_per_task
        return steps_per_unit(
            self.stream,
            num_ranks,
            wanted=wanted,
            row_s=self.row_s,
            max_bytes=self.max_block_bytes,
        )


def make_trainer(
    job: RankJob, placement: Placement, train_on_rank: Callable[[dict[str, Any]], Any]
) -> TorchTrainer:
    """Make the trainer of one attempt; its `fit` runs to the end.

    Args:
        job: all that each rank is given.
        placement: the nodes that render, and those that train.
        train_on_rank: the function that each rank runs.
    """
    config, scaling = job.config, job.config.scaling
    fewest = scaling.min_ranks or scaling.num_ranks
    is_elastic = fewest < scaling.num_ranks
    root, filesystem = job.run.arrow_path()
    resources = {"CPU": scaling.cpus_per_rank} | ({"GPU": 1.0} if scaling.use_gpu else {})
    settings: dict[str, Any] = {
        "train_loop_config": {"job": job},
        "torch_config": TorchConfig(timeout_s=_GROUP_TIMEOUT_S),
        # A stand-in: the stream depends on the number of ranks, which only `configure` knows.
        "datasets": {DATASET: lambda: ray.data.range(1)},
        "dataset_config": StreamDataConfig(job, placement),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=(fewest, scaling.num_ranks) if is_elastic else scaling.num_ranks,
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources,
            label_selector=None if placement.trainer is None else dict(placement.trainer),
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        "run_config": ray.train.RunConfig(
            # A new name for each attempt, so that Ray finds no state of an earlier one.
            name=job.attempt,
            storage_path=f"{root}/ray",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
        ),
    }
    trainer = TorchTrainer(train_on_rank, **settings)
    if is_elastic:
        divide_whole_batches(trainer, config.train.global_batch_size)
    return trainer


class StreamDataConfig(ray.train.DataConfig):
    """Makes the stream at each start of the ranks, from the step where they are."""

    def __init__(self, job: RankJob, placement: Placement) -> None:
        """Take the attempt, and the nodes that render."""
        super().__init__(execution_options=execution_options(placement.renderer))
        self._job, self._placement = job, placement

    def configure(
        self,
        datasets: Any,  # noqa: ARG002 - a stand-in
        world_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Split the stream over the ranks; Ray calls this for each new group of them."""
        job, config, renderer = self._job, self._job.config, self._placement.renderer
        units = job.steps_per_unit(world_size)
        steps = StreamRange(
            first_step(job.run), config.train.steps, world_size, steps_per_unit=units
        )
        dataset = stream_dataset(
            job.stream, steps, config.scaling, selector=renderer, beside_ranks=renderer is None
        )
        return super().configure({DATASET: dataset}, world_size, *args, **kwargs)
