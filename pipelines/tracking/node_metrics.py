"""The load of every machine of the cluster, in MLflow's tab of system metrics.

MLflow's own monitors measure; its thread around them is not used, since that one ends for good when
the server is away once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.tracking.mlflow_run import TrackedRun, connect, metric_points

if TYPE_CHECKING:
    from mlflow.entities import Metric

SAMPLE_EVERY_S = 5.0
#: Points that wait while the server is away: hours of them.
_MAX_WAITING = 100_000
_METRICS_PER_CALL = 1000


class NodeMetrics:
    """Measures one machine from a thread, and sends what it measured."""

    def __init__(self, run: TrackedRun, node: str) -> None:
        """Start the thread.

        Args:
            run: that the metrics go to.
            node: the machine's name in them.
        """
        self._run, self._node = run, node
        self._waiting: deque[Metric] = deque(maxlen=_MAX_WAITING)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="node-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is left, if the server is there, and end the thread."""
        self._is_over.set()
        self._thread.join(timeout=SAMPLE_EVERY_S)

    def _work(self) -> None:
        client = connect(self._run.uri)
        started_ms = self._begin(client)
        monitors = _monitors()
        while not self._is_over.wait(SAMPLE_EVERY_S):
            now_ms = int(time.time() * 1000)
            # Seconds since the run began: one scale for all machines and all restarts.
            step = (now_ms - started_ms) // 1000
            self._waiting.extend(
                metric_points(
                    {f"system/{self._node}/{k}": v for k, v in _measure(monitors).items()},
                    step=step,
                    timestamp_ms=now_ms,
                )
            )
            self._send(client)
        self._send(client)

    def _begin(self, client: Any) -> int:
        """When the run began, in ms; now, while the server is away."""
        try:
            return int(client.get_run(self._run.run_id).info.start_time)
        except Exception:  # noqa: BLE001 - the load of a machine is not worth a run
            return int(time.time() * 1000)

    def _send(self, client: Any) -> None:
        while self._waiting:
            points = list(self._waiting)[:_METRICS_PER_CALL]
            try:
                client.log_batch(self._run.run_id, points)
            except Exception:  # noqa: BLE001 - they wait; the outbox of the run warns
                return
            for _ in points:
                self._waiting.popleft()


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):
        # It says so where there is no GPU, or no driver of one.
        return monitors
    return monitors


def _measure(monitors: Sequence[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return found


class ClusterMetrics:
    """A `NodeMetrics` on every machine: a thread in this process, elsewhere an idle actor."""

    def __init__(self, run: TrackedRun) -> None:
        """Nothing is started before `follow`."""
        self._run = run
        self._here: NodeMetrics | None = None
        self._actors: dict[str, tuple[str, Any]] = {}

    def follow(self) -> None:
        """Start on machines that joined, forget those that left."""
        here = ray.util.get_node_ip_address()
        alive = {n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
        if self._here is None:
            self._here = NodeMetrics(self._run, here)
        for address, node_id in alive.items():
            known_id, _ = self._actors.get(address, (None, None))
            if address != here and known_id != node_id:
                self._actors[address] = (node_id, self._start(address, node_id))
        self._actors = {a: actor for a, actor in self._actors.items() if a in alive}

    def _start(self, address: str, node_id: str) -> Any:
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor = ray.remote(NodeMetrics).options(num_cpus=0, scheduling_strategy=where)
        return actor.remote(self._run, address)

    def stop(self) -> None:
        """End all of them."""
        if self._here is not None:
            self._here.stop()
        ending = [actor.stop.remote() for _, actor in self._actors.values()]
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=SAMPLE_EVERY_S)
