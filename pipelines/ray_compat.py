# pyright: reportPrivateUsage=false
"""Every name that this project uses of Ray and that Ray does not publish, with the reason.

Contract tests (tests/integration/test_ray_compat.py) say what changed where another release fails
them; `make compat RAY=2.59.0` runs them and a training on that release. This module does without
torch, since render workers load it.
"""

from __future__ import annotations

from typing import Any

import ray.train
from ray.data import DataContext
from ray.train.v2._internal.execution.preemption import _get_draining_nodes
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingDecision


def execution_index(context: DataContext | None) -> int:
    """Return how many executions of a dataset ended well before this one, in its coordinator.

    A run is delivered in segments, one execution each, and a data source has no public way to learn
    which it is in. Ray's own seeded shuffles read the same attribute. Without a context Ray only
    plans, and the answer is 0.
    """
    return 0 if context is None else context._execution_idx


def divide_whole_batches(trainer: Any, global_batch_size: int) -> None:
    """Have a trainer with a varying number of ranks use only numbers that divide the global batch.

    Ray chooses the number by its `ElasticScalingPolicy`, and has no public way to restrict it.
    """
    run_controller = trainer._initialize_and_run_controller

    def run_with_policy(**settings: Any) -> Any:
        policy = WholeBatchPolicy(trainer.scaling_config, global_batch_size)
        return run_controller(**settings | {"scaling_policy": policy})

    trainer._initialize_and_run_controller = run_with_policy


class WholeBatchPolicy(ElasticScalingPolicy):
    """Ray's policy, but only numbers of ranks that divide the global batch are used."""

    def __init__(self, scaling_config: ray.train.ScalingConfig, global_batch_size: int) -> None:
        """Take the numbers that are allowed, and the batch."""
        super().__init__(scaling_config)
        self._global_batch_size = global_batch_size
        self._leaving: set[str] = set()

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Leave out the nodes that are about to be taken away, which Ray would count on.

        Ray 2.59 lists the resources of nodes without their names: there, such a node counts until
        it is gone, and ranks that find no place are placed anew.
        """
        self._leaving = set(_get_draining_nodes())
        try:
            return super().make_decision_for_non_running_worker_group()
        finally:
            # Ranks that run stay on such a node to the end: they save first.
            self._leaving = set()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        if isinstance(reserved_resources, dict):
            reserved_resources = {
                node: found
                for node, found in reserved_resources.items()
                if node not in self._leaving
            }
        possible = super()._count_possible_workers(reserved_resources)
        return whole_batch_ranks(possible, self._global_batch_size)


def whole_batch_ranks(possible: int, global_batch_size: int) -> int:
    """Return the largest number of ranks up to `possible` that divides the batch; 0 for 0."""
    return max((n for n in range(1, possible + 1) if global_batch_size % n == 0), default=0)
