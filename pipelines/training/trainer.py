"""Ray Train's part: places the ranks, forms their group, splits the stream, restarts what fails."""

from __future__ import annotations

from typing import Any

import ray.data
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.execution.preemption import _get_draining_nodes
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingDecision

from pipelines.runtime.placement import Placement
from pipelines.runtime.ray_session import cluster_address
from pipelines.stream.stream import DATASET
from pipelines.training.job import StreamDataConfig, WorkerJob
from pipelines.training.rank import train_on_rank
from pipelines.training.rank_group import RankGroup

#: How often a run that could use more ranks looks for them. A resize restarts the ranks from the
#: last checkpoint, so that it should not happen for every node of many that come.
RESIZE_EVERY_S = 60.0
#: Longer than any step or checkpoint: gloo's and NCCL's own bound for a rank that never comes.
_GROUP_TIMEOUT_S = 1800


def make_trainer(job: WorkerJob, placement: Placement) -> TorchTrainer:
    """The trainer of one attempt; `fit` runs it to the end.

    Args:
        job: what each rank is given.
        placement: which nodes are for what.
    """
    config, scaling = job.config, job.config.scaling
    fewest = scaling.min_ranks or scaling.num_ranks
    is_elastic = fewest < scaling.num_ranks
    root, filesystem = job.run.arrow_path()
    resources = {"CPU": scaling.cpus_per_rank} | ({"GPU": 1.0} if scaling.use_gpu else {})
    settings: dict[str, Any] = {
        "train_loop_config": {"job": job},
        "torch_config": RankGroup("nccl" if scaling.use_gpu else "gloo", _GROUP_TIMEOUT_S),
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
            # A name of its own for each attempt: Ray keeps no state that another could trip over.
            name=job.attempt,
            storage_path=f"{root}/ray",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
        ),
    }
    if is_elastic:
        return _ElasticTrainer(train_on_rank, config.train.global_batch_size, **settings)
    return Trainer(train_on_rank, **settings)


class Trainer(TorchTrainer):
    """Does without what only matters where Ray outlives the run.

    Ray has no public hook for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if cluster_address() is not None:
            return callbacks
        # Gives back the ranks' places if the controller dies: an actor, 2 s of CPU time to start.
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


class _ElasticTrainer(Trainer):
    """Uses numbers of ranks that divide the batch alone."""

    def __init__(self, train_loop: Any, global_batch_size: int, **settings: Any) -> None:
        super().__init__(train_loop, **settings)
        self._global_batch_size = global_batch_size

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = WholeBatchPolicy(self.scaling_config, self._global_batch_size)
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": policy})


class WholeBatchPolicy(ElasticScalingPolicy):
    """Ray's policy, but the number of ranks always divides the global batch.

    Ray has no public hook for it; tests/integration/multinode hold this to the release.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig, global_batch_size: int) -> None:
        """Of a run."""
        super().__init__(scaling_config)
        self._global_batch_size = global_batch_size
        self._leaving: set[str] = set()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Leave out the nodes that are about to be taken away, which Ray counts on."""
        self._leaving = set(_get_draining_nodes())
        try:
            return super().make_decision_for_non_running_worker_group()
        finally:
            # Ranks that run stay on such a node to the end: they save first.
            self._leaving = set()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        staying = {n: found for n, found in reserved_resources.items() if n not in self._leaving}
        possible = super()._count_possible_workers(staying)
        return whole_batch_ranks(possible, self._global_batch_size)


def whole_batch_ranks(possible: int, global_batch_size: int) -> int:
    """The largest number of ranks up to `possible` that divides the batch; 0 for 0."""
    return max((n for n in range(1, possible + 1) if global_batch_size % n == 0), default=0)
