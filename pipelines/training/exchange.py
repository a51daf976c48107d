"""Exchange of figures between ranks: one sum over the ranks, once for many steps.

Between two exchanges nothing is read back from the device, and no collective runs but those of the
loss and of the gradients.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from clippo_core.errors import RejectReason
from pipelines.config.settings import TrainConfig
from pipelines.training.bottleneck import STAGES, effort_of
from pipelines.training.feeding import DeviceFeed, FedBatch
from pipelines.training.parallel import sum_over_ranks, whole_tensor

#: Seconds after which ranks look at their figures, however rarely they are logged: for a wish to
#: stop, a notice of preemption, and a loss that is no number any more.
LOOK_EVERY_S = 2.0
#: Metrics whose parts on the ranks add up to the batch's; others are the same on all ranks.
_ADDED = ("loss", "accuracy")
_EFFORT = (*(f"{stage}_{unit}" for stage in STAGES for unit in ("s", "cpu_s")), "ready_s")


@dataclass(frozen=True)
class Totals:
    """Figures of the steps since the last exchange, the same on all ranks.

    Attributes:
        metrics: each metric of the whole batch, one number for each step.
        elapsed_s: seconds that all steps took together, on average over the ranks.
        wait_s: seconds that a rank's device waited for data meanwhile, on average.
        wall_s: Unix time that all ranks agree upon: the mean of their clocks.
        effort: time of preparing the batches, added up, by the names of `effort_of`.
        rejected: rejected samples since the run began, by SOURCE/REASON.
        is_stop_wanted: whether the driver asked rank 0 to stop.
    """

    metrics: Mapping[str, Float64[np.ndarray, " step"]]
    elapsed_s: float
    wait_s: float
    wall_s: float
    effort: Mapping[str, float]
    rejected: Mapping[str, int]
    is_stop_wanted: bool

    @property
    def num_steps(self) -> int:
        """Return how many steps the figures are of."""
        return len(self.metrics["loss"])


class StepWindow:
    """Gathers the figures of a rank's steps, and exchanges them when it is asked to."""

    def __init__(self, sources: Sequence[str], rejected: Mapping[str, int], num_ranks: int):
        """Begin the first window.

        Args:
            sources: names of the data sets.
            rejected: samples that were rejected before, by SOURCE/REASON.
            num_ranks: how many ranks exchange figures.
        """
        self._kinds = [f"{name}/{why}" for name in sources for why in get_args(RejectReason)]
        self._rejected, self._num_ranks = Counter(rejected), num_ranks
        self._clear()

    def _clear(self) -> None:
        self._metrics: list[Mapping[str, Tensor]] = []
        self._effort = Counter[str]()
        self._new_rejects = Counter[str]()
        self._started = time.perf_counter()

    def begin(self) -> None:
        """Count the time from now on: what came before was start-up."""
        self._started = time.perf_counter()

    def add(self, batch: FedBatch, metrics: Mapping[str, Tensor]) -> None:
        """Take in a step; its metrics stay on the device."""
        self._metrics.append({name: whole_tensor(value) for name, value in metrics.items()})
        self._effort.update(effort_of(batch.prepared, batch.arrived_at))  # pyright: ignore[reportArgumentType] - a Counter of seconds
        self._new_rejects.update(f"{row.source}/{row.reason}" for row in batch.prepared.rejected)

    def exchange(self, feed: DeviceFeed, device: torch.device, *, is_stop_wanted: bool) -> Totals:
        """Read the figures from the device, add them up over the ranks, and begin a new window."""
        names = list(self._metrics[0])
        rows = [torch.stack([step[n].reshape(()).float() for n in names]) for step in self._metrics]
        of_steps = torch.stack(rows).flatten().tolist()
        # Known only now: to read the figures was to wait for all steps.
        elapsed_s = time.perf_counter() - self._started
        own = [elapsed_s, feed.take_wait_s(), time.time(), float(is_stop_wanted)]
        own += [self._effort[name] for name in _EFFORT]
        own += [float(self._new_rejects[kind]) for kind in self._kinds]
        sums = sum_over_ranks([*of_steps, *own], device)
        of_batch = np.array(sums[: len(of_steps)]).reshape(-1, len(names))
        elapsed_s, wait_s, wall_s, wishes, *rest = sums[len(of_steps) :]
        counts = zip(self._kinds, rest[len(_EFFORT) :], strict=True)
        self._rejected.update({kind: round(count) for kind, count in counts if count})
        self._clear()
        return Totals(
            metrics={
                name: of_batch[:, n] / (1 if name in _ADDED else self._num_ranks)
                for n, name in enumerate(names)
            },
            elapsed_s=elapsed_s / self._num_ranks,
            wait_s=wait_s / self._num_ranks,
            wall_s=wall_s / self._num_ranks,
            effort=dict(zip(_EFFORT, rest, strict=False)),
            rejected=dict(self._rejected),
            is_stop_wanted=wishes > 0,
        )


def next_look(step: int, train: TrainConfig, totals: Totals) -> int:
    """Return the step at which ranks exchange figures next, the same on all of them.

    The next one that is logged, or one after about `LOOK_EVERY_S` seconds.
    """
    step_s = totals.elapsed_s / totals.num_steps
    in_time = step + max(int(LOOK_EVERY_S / max(step_s, 1e-6)), 1)
    logged = (step // train.log_every + 1) * train.log_every
    return min(in_time, logged, train.steps)
