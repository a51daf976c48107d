"""`RunMonitor`: the actor through which driver and rank 0 talk while a run goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clippo_core.errors import ConfigError
from pipelines.tracking.mlflow_client import TrackedRun
from pipelines.training.bottleneck import StreamFigures

_ASK_AGAIN_S = 0.1


@dataclass
class Progress:
    """The progress of a run by rank 0's last report."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    stream: StreamFigures | None = None
    checkpoints: list[str] = field(default_factory=list)
    heard_at: float | None = None


class RunMonitor:
    """An actor that holds the progress, the wish to stop, and MLflow's run; it takes no CPU."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._is_stop_wanted = False
        self._tracked: TrackedRun | str | None = None

    def announce(self, tracked: TrackedRun | str) -> None:
        """Take in where MLflow has the run, or why it has none, from the driver."""
        self._tracked = tracked

    def tracked(self) -> TrackedRun | str | None:
        """Return what the driver announced; None where it has announced nothing yet."""
        return self._tracked

    def update(self, step: int, metrics: dict[str, float], stream: StreamFigures | None) -> None:
        """Take in rank 0's report: the last step, its metrics, and the stream so far."""
        self._progress.step, self._progress.metrics = step, metrics
        self._progress.stream = stream or self._progress.stream
        self._progress.heard_at = time.monotonic()

    def is_stop_wanted(self) -> bool:
        """Tell rank 0 whether the driver wants the run to stop."""
        return self._is_stop_wanted

    def checkpoint_committed(self, uri: str) -> None:
        """Take in that a checkpoint is in its place, from rank 0."""
        self._progress.checkpoints.append(uri)

    def request_stop(self) -> None:
        """Take in that the driver wants a checkpoint and the end of the run."""
        self._is_stop_wanted = True

    def progress(self) -> Progress:
        """Return the progress, for the driver."""
        return self._progress


def start_monitor() -> Any:
    """Start the actor; it ends with the process that owns it."""
    # On this node: Ray would put an actor that needs no CPU anywhere, and lose it with that node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(RunMonitor).options(num_cpus=0, scheduling_strategy=here).remote()


class MonitorClient:
    """Rank 0's side: reports without waiting, and takes the answer when it is there."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._pending: Any = None
        self._is_stop_wanted = False

    def tracked_run(self) -> TrackedRun:
        """Return where MLflow has the run; wait for the driver, which opens it while ranks start.

        Raises:
            ConfigError: if the driver could not open it.
        """
        tracked: TrackedRun | str | None = None
        while tracked is None:
            time.sleep(_ASK_AGAIN_S)
            tracked = cast("TrackedRun | str | None", ray.get(self._monitor.tracked.remote()))
        if isinstance(tracked, str):
            raise ConfigError(tracked)
        return tracked

    @property
    def is_stop_wanted(self) -> bool:
        """Tell whether the driver wants the run to stop, by its last answer."""
        return self._is_stop_wanted

    def poll(self) -> None:
        """Take the driver's answer if it is there, and ask again; never waits."""
        if self._pending is not None:
            done, _ = ray.wait([self._pending], timeout=0)
            if not done:
                return
            self._is_stop_wanted = ray.get(done[0])
        self._pending = self._monitor.is_stop_wanted.remote()

    def update(self, step: int, metrics: dict[str, float], stream: StreamFigures | None) -> None:
        """Report how far the run has come; does not wait."""
        self._monitor.update.remote(step, metrics, stream)

    def checkpoint_committed(self, uri: str) -> None:
        """Report a checkpoint; waits until the driver can know of it."""
        ray.get(self._monitor.checkpoint_committed.remote(uri))
