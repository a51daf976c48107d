"""A Ray cluster of several nodes on this machine, whose nodes come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ray._common.utils import get_default_ray_temp_dir
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location

ROOT = Path(__file__).parents[3]
#: A dead node is noticed within 2 s, not within 15; one that is only slow is given time.
_SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}
#: As on the command line, but a run that may resize looks every few seconds.
_TRAIN = """
import sys
from pipelines.cli import main
from pipelines.training import trainer
trainer.RESIZE_EVERY_S = 3.0
sys.exit(main(["train", sys.argv[1]]))
"""
_STORE_BYTES = 100_000_000
_PREEMPTION = 2  # DRAIN_NODE_REASON_PREEMPTION


class LocalCluster:
    """A head without CPUs; its nodes' CPUs are bookkeeping, there may be fewer cores."""

    def __init__(self) -> None:
        # Ray notes there which cluster is the newest, wherever that cluster's own folder is.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        # Sockets' paths must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "temp_dir": self._folder.name,
                "_system_config": _SYSTEM_CONFIG,
            },
        )
        self.address: str = self._cluster.address

    def add_renderer(self) -> Any:
        labels = {"ray-subcluster": "renderer", "clippo.role": "renderer"}
        return self._add(labels, num_cpus=1)

    def add_trainer(self) -> Any:
        return self._add({"clippo.role": "trainer"}, num_cpus=1)

    def _add(self, labels: dict[str, str], *, num_cpus: int) -> Any:
        return self._cluster.add_node(
            num_cpus=num_cpus, labels=labels, object_store_memory=_STORE_BYTES
        )

    def kill(self, node: Any) -> None:
        """By SIGKILL, with all that runs on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def remove_nodes(self) -> None:
        for node in list(self._cluster.worker_nodes):
            self.kill(node)

    def announce_preemption(self, node: Any, *, deadline_s: float) -> None:
        """As a cloud announces that it takes a spot machine back."""
        deadline_ms = int((time.time() + deadline_s) * 1000)
        accepted, message = GcsClient(address=self.address).drain_node(
            node.node_id, _PREEMPTION, "spot machine is taken back", deadline_ms
        )
        assert accepted, message

    def start_train(self, config_file: Path, log: Path) -> subprocess.Popen[str]:
        environment = os.environ | {"RAY_ADDRESS": self.address}
        # Off where Ray is on this machine alone, as for other tests of this process.
        environment.pop("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", None)
        with log.open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-c", _TRAIN, str(config_file)],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        self._cluster.shutdown()
        self._folder.cleanup()


class Follower:
    """Waits for a run to come to certain points, while it goes on."""

    def __init__(self, run: Location, driver: subprocess.Popen[str], log: Path) -> None:
        self.run, self.driver, self.log = run, driver, log

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 200.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.driver.poll() is None, f"the run ended early:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> int:
        """Until there is a checkpoint of that step or a later one; the step of the newest."""
        self.wait_until(lambda: self.newest() >= step)
        return self.newest()

    def wait_for_metric(self, name: str, value: float) -> None:
        """Until MLflow's newest point of a metric has that value."""

        def has_come() -> bool:
            time.sleep(0.2)
            points = self.history(name)
            return bool(points) and points[-1].value == value

        self.wait_until(has_come)

    def history(self, metric: str) -> list[Any]:
        """The metric's points, by step."""
        tracked = (self.run / "mlflow.json").read_json()
        points = MlflowClient(tracked["uri"]).get_metric_history(tracked["run_id"], metric)
        return sorted(points, key=lambda point: point.step)

    def newest(self) -> int:
        return max(self.steps(), default=0)

    def steps(self) -> list[int]:
        """Of the checkpoints that are kept."""
        return [step for step, _ in whole_checkpoints(self.run)]

    def wait_for_end(self, *, exit_code: int = 0, timeout_s: float = 300.0) -> None:
        self.driver.wait(timeout=timeout_s)
        assert self.driver.returncode == exit_code, self.log.read_text()


def samples_per_step(run: Location) -> tuple[dict[int, list[str]], dict[int, set[int]]]:
    """Keys of each step in the plan's order, and by how many ranks it was made.

    However often and by however many ranks a step was made, it must have seen the same.
    """
    parts: dict[tuple[int, int], dict[int, list[str]]] = {}
    for name in (run / "samples").names():
        for row in map(json.loads, (run / "samples" / name).read_bytes().splitlines()):
            ranks = parts.setdefault((row["step"], row["num_ranks"]), {})
            assert ranks.setdefault(row["rank"], row["keys"]) == row["keys"]
    seen: dict[int, list[str]] = {}
    sizes: dict[int, set[int]] = {}
    for (step, num_ranks), ranks in parts.items():
        if len(ranks) < num_ranks:
            continue  # a rank was killed before it wrote down what it saw
        keys = [key for rank in range(num_ranks) for key in ranks[rank]]
        assert seen.setdefault(step, keys) == keys, f"step {step} saw other samples"
        sizes.setdefault(step, set()).add(num_ranks)
    return seen, sizes
