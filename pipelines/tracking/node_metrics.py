"""Load of the machines of a cluster: least, mean and greatest in charts, each node's in a file.

MLflow's own monitors measure; its thread around them is not used, since that one ends for good when
the server is away once.
"""

from __future__ import annotations

import csv
import io
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.tracking.mlflow_run import RunTracker


class NodeMonitors:
    """Measures the machine that it is on."""

    def __init__(self) -> None:
        """Find out what this machine has."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        # Raised where there is no GPU, or no driver of one.
        with suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())

    def measure(self) -> dict[str, float]:
        """Return the machine's load since the last call, by MLflow's names."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found


@dataclass
class _Sums:
    """Values of a metric on a node."""

    count: int = 0
    least: float = float("inf")
    total: float = 0.0
    greatest: float = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)
        self.total += value


class ClusterMetrics:
    """Measures every machine of the cluster: this one here, others through an idle actor."""

    def __init__(self, tracker: RunTracker) -> None:
        """Take the run; nothing is started before `follow`."""
        self._tracker, self._began = tracker, time.time()
        # Asked for in the queue's thread, since MLflow may be away.
        self._offset_s: float | None = None
        tracker.queue.add("the start of the run", self._find_offset)
        self._here: NodeMonitors | None = None
        self._actors: dict[tuple[str, str], Any] = {}
        self._asked: dict[Any, str] = {}
        self._last: dict[str, dict[str, float]] = {}
        self._sums: dict[tuple[str, str], _Sums] = defaultdict(_Sums)

    def follow(self) -> None:
        """Take in what was measured since the last call, log it, and ask again; never waits."""
        here = ray.util.get_node_ip_address()
        if self._here is None:
            self._here = NodeMonitors()
        # A machine that left and came back has another id.
        alive = {n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
        self._actors = {
            machine: self._actors.get(machine) or self._start(machine[1])
            for machine in alive.items()
            if machine[0] != here
        }
        self._last = {node: found for node, found in self._last.items() if node in alive}
        self._last[here] = self._here.measure()
        self._take_answers()
        self._log()
        waiting = set(self._asked.values())
        for (address, _), actor in self._actors.items():
            if address not in waiting:
                self._asked[actor.measure.remote()] = address

    def _find_offset(self) -> None:
        started_ms = self._tracker.client.get_run(self._tracker.run.run_id).info.start_time
        self._offset_s = self._began - started_ms / 1000

    def _start(self, node_id: str) -> Any:
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ray.remote(NodeMonitors).options(num_cpus=0, scheduling_strategy=where).remote()

    def _take_answers(self) -> None:
        references = list(self._asked)
        done = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        for reference in done:
            node = self._asked.pop(reference)
            try:
                self._last[node] = ray.get(reference)
            except ray.exceptions.RayError:
                # The machine is gone; the next look at the cluster says so.
                self._last.pop(node, None)

    def _log(self) -> None:
        """Log least, mean and greatest over the machines."""
        for node, found in self._last.items():
            for name, value in found.items():
                self._sums[node, name].add(value)
        if self._offset_s is not None:
            # Seconds since the run began: one scale for all restarts.
            seconds = int(self._offset_s + time.time() - self._began)
            self._tracker.log_metrics(spread_over("system", self._last), step=seconds)

    def stop(self) -> None:
        """Store each node's own figures as an artifact."""
        if self._sums:
            name = f"nodes/from_{int(self._began)}.csv"
            self._tracker.log_text(self._table(), name)

    def _table(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(("node", "metric", "samples", "least", "mean", "greatest"))
        for (node, name), sums in sorted(self._sums.items()):
            mean = sums.total / sums.count
            writer.writerow((node, name, sums.count, sums.least, mean, sums.greatest))
        return buffer.getvalue()


def spread_over(section: str, per_member: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return least, mean and greatest of each metric over nodes, whose number may be large.

    Args:
        section: first part of the names in the charts.
        per_member: the metrics of each member, by their names.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for found in per_member.values():
        for name, value in found.items():
            values[name].append(value)
    spread: dict[str, float] = {}
    for name, found in values.items():
        spread[f"{section}/{name}/least"] = min(found)
        spread[f"{section}/{name}/mean"] = sum(found) / len(found)
        spread[f"{section}/{name}/greatest"] = max(found)
    return spread
