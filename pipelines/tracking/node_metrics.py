"""Load of every machine of the cluster, for MLflow's tab of system metrics.

MLflow's own monitors measure; its thread around them is not used, since that one ends for good when
the server is away once.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.tracking.mlflow_client import TrackedRun
from pipelines.tracking.mlflow_queue import MlflowQueue

SAMPLE_EVERY_S = 5.0
#: Samples, hours of them, that wait while the server is away before no more are taken.
_MAX_WAITING = 5000


class NodeMetrics:
    """Measures one machine from a thread, and sends what it measured."""

    def __init__(self, run: TrackedRun, node: str) -> None:
        """Start the thread.

        Args:
            run: the MLflow run to send to.
            node: the machine's name in the metrics.
        """
        self._run, self._node = run, node
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="node-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is left, if the server is there, and end the thread."""
        self._is_over.set()
        # Longer than that, no run waits for the load of a machine.
        self._thread.join(timeout=SAMPLE_EVERY_S)

    def _work(self) -> None:
        # The driver says that the server is away; a line from each machine would drown it.
        queue = MlflowQueue(self._run, is_quiet=True)
        try:
            started_s = queue.client.get_run(self._run.run_id).info.start_time / 1000
        except Exception:  # noqa: BLE001 - the load of a machine is not worth a run
            started_s = time.time()
        monitors = _monitors()
        while not self._is_over.wait(SAMPLE_EVERY_S):
            if queue.num_waiting < _MAX_WAITING:
                found = {f"system/{self._node}/{k}": v for k, v in _measure(monitors).items()}
                # Seconds since the run began: one scale for all machines and all restarts.
                queue.log(int(time.time() - started_s), found)
        queue.close()


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        return [*monitors, GPUMonitor()]
    except (ImportError, RuntimeError):
        # Raised where there is no GPU, or no driver of one.
        return monitors


def _measure(monitors: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return found


class ClusterMetrics:
    """A `NodeMetrics` on every machine: a thread in this process, elsewhere an idle actor."""

    def __init__(self, run: TrackedRun) -> None:
        """Take the run; nothing is started before `follow`."""
        self._run = run
        self._here: NodeMetrics | None = None
        self._actors: dict[tuple[str, str], Any] = {}

    def follow(self) -> None:
        """Start on machines that joined, forget those that left."""
        here = ray.util.get_node_ip_address()
        if self._here is None:
            self._here = NodeMetrics(self._run, here)
        # A machine that left and came back has another id.
        alive = {n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
        self._actors = {
            machine: self._actors.get(machine) or self._start(*machine)
            for machine in alive.items()
            if machine[0] != here
        }

    def _start(self, address: str, node_id: str) -> Any:
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor = ray.remote(NodeMetrics).options(num_cpus=0, scheduling_strategy=where)
        return actor.remote(self._run, address)

    def stop(self) -> None:
        """Stop measuring on all machines."""
        if self._here is not None:
            self._here.stop()
        ending = [actor.stop.remote() for actor in self._actors.values()]
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=SAMPLE_EVERY_S)
