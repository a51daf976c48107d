"""Nodes are lost, added and taken back in mid-run: every step sees the samples of the plan."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from clippo_core.codec import to_json
from pipelines.resolve import resolve
from pipelines.schema import RunConfig
from pipelines.storage import Location
from tests.integration.multinode.local_cluster import Follower, LocalCluster, samples_per_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def start(cluster: LocalCluster, config: RunConfig, folder) -> Follower:
    file, log = folder / "run.json", folder / "log"
    file.write_text(to_json(config))
    run = Location.of(config.storage.root) / "run"
    return Follower(run, cluster.start_train(file, log), log)


def planned_keys(config: RunConfig) -> dict[int, list[str]]:
    plan = resolve(config).stream.plan
    return {s: [f"s{row:04d}" for row in plan.batch(s).row] for s in range(config.train.steps)}


def history(run: Location, metric: str) -> list[float]:
    tracked = (run / "mlflow.json").read_json()
    points = MlflowClient(tracked["uri"]).get_metric_history(tracked["run_id"], metric)
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def test_a_run_outlives_its_nodes(cluster: LocalCluster, make_config, tmp_path):
    """A renderer is killed and another comes; then the trainer is killed and another comes."""
    trainer = cluster.add_trainer()
    renderers = [cluster.add_renderer(), cluster.add_renderer()]
    config = make_config(
        train={"steps": 400, "checkpoint_every": 10, "global_batch_size": 64},
        scaling={"renderer_cpus": 1, "max_renderers": None},
    )
    following = start(cluster, config, tmp_path)
    following.wait_for_step(50)
    cluster.kill(renderers[0])
    following.wait_for_step(100)
    cluster.add_renderer()
    following.wait_for_step(250)
    cluster.kill(trainer)
    cluster.add_trainer()
    output = following.wait_for_end()
    seen, _ = samples_per_step(following.run)
    assert seen == planned_keys(config)
    nodes = history(following.run, "stream/nodes")
    print(output)
    print(nodes)
    print(history(following.run, "stream/rows_per_s"))
