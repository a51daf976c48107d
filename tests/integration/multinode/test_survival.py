"""Nodes are lost, added and taken back in mid-run: every step sees the samples of the plan."""

from __future__ import annotations

import os
import signal

import pytest

from clippo_core.config import to_json
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig
from pipelines.runtime.storage import Location
from tests.integration.multinode.local_cluster import Follower, LocalCluster, samples_per_step

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("CLIPPO_MULTINODE") != "1",
        reason="CLIPPO_MULTINODE is not 1: clusters of five nodes on this machine take minutes",
    ),
]


def start(cluster: LocalCluster, config: RunConfig, folder) -> Follower:
    file, log = folder / "run.json", folder / "log"
    file.write_text(to_json(config))
    run = Location.of(config.storage.root) / "run"
    return Follower(run, cluster.start_train(file, log), log)


def planned_keys(config: RunConfig, steps: int) -> dict[int, list[str]]:
    plan = resolve(config).stream.plan
    return {s: [f"s{row:04d}" for row in plan.batch(s).row] for s in range(steps)}


def test_a_run_outlives_its_nodes(cluster: LocalCluster, make_config, tmp_path):
    """A renderer is killed and another comes; then the trainer is killed and another comes."""
    trainer = cluster.add_trainer()
    renderers = [cluster.add_renderer(), cluster.add_renderer()]
    config = make_config(
        # Enough for the new renderer to be at work before the end, however fast the steps are.
        train={"steps": 900, "checkpoint_every": 10, "global_batch_size": 64},
        scaling={"renderer_cpus": 1, "max_renderers": None},
    )
    following = start(cluster, config, tmp_path)
    following.wait_for_step(50)
    cluster.kill(renderers[0])
    following.wait_for_step(100)
    cluster.add_renderer()
    following.wait_for_metric("stream/nodes", 1)
    following.wait_for_metric("stream/nodes", 2)
    cluster.kill(trainer)
    cluster.add_trainer()
    following.wait_for_end()
    seen, _ = samples_per_step(following.run)
    assert seen == planned_keys(config, config.train.steps)
    points = following.history("stream/nodes")
    assert [point.step for point in points] == list(range(1, config.train.steps + 1))
    assert max(point.value for point in points[:50]) == 2


def test_ranks_come_and_go_and_a_notice_of_preemption_is_heeded(
    cluster: LocalCluster, make_config, tmp_path
):
    """Two ranks, then one, then two again; no failure is allowed, and the notice counts as none."""
    cluster.add_renderer()
    trainers = [cluster.add_trainer(), cluster.add_trainer()]
    config = make_config(
        train={"steps": 10_000, "checkpoint_every": 20, "global_batch_size": 64},
        scaling={
            "num_ranks": 2,
            "min_ranks": 1,
            "renderer_cpus": 1,
            "max_renderers": None,
            "max_failures": 0,
        },
    )
    following = start(cluster, config, tmp_path)
    following.wait_for_step(20)
    cluster.announce_preemption(trainers[0], deadline_s=8.0)
    following.wait_until(lambda: any(step % 20 for step in following.steps()))
    # Ray gives the ranks up at the deadline. A node that dies before it did counts as a failure.
    following.wait_for_metric("train/num_ranks", 1)
    cluster.kill(trainers[0])
    cluster.add_trainer()
    following.wait_for_metric("train/num_ranks", 2)
    following.driver.send_signal(signal.SIGTERM)
    following.wait_for_end(exit_code=130)
    seen, sizes = samples_per_step(following.run)
    planned = planned_keys(config, following.newest())
    assert seen == planned
    assert (min(sizes[max(sizes)]), max(sizes[0])) == (2, 2)
    assert any(1 in found for found in sizes.values())
