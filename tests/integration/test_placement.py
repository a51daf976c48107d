"""Which nodes do what, and what is said where there are too few."""

from __future__ import annotations

import dataclasses
import re
import uuid
from typing import Any

import pytest

from pipelines.config.settings import RunConfig, ScalingConfig
from pipelines.ray_compat import whole_batch_ranks
from pipelines.runtime import placement
from pipelines.runtime.placement import Capacity, ClusterWatch, Placement, await_capacity
from pipelines.training.bottleneck import PictureSides, StreamFigures, verdict

RENDERER = {"ray-subcluster": "renderer", "clippo.role": "renderer"}
TRAINER = {"clippo.role": "trainer"}


def node(cpus: float, labels: dict[str, str] | None = None, *, alive: bool = True, gpus=0) -> Any:
    resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": 1e9}
    return {
        "NodeID": uuid.uuid4().hex,
        "NodeManagerAddress": "10.0.0.1",
        "Alive": alive,
        "Labels": labels,
        "Resources": resources,
    }


def shortage(config: RunConfig, nodes: list[Any], *, block_bytes: int = 1000) -> str | None:
    found = Placement.of(nodes)
    capacity = Capacity.of(nodes, found, config.scaling)
    return capacity.shortage(config, found, block_bytes=block_bytes)


def test_everything_runs_anywhere_on_nodes_without_labels():
    assert Placement.of([node(2), node(4, {"zone": "a"})]) == Placement(None, None)


def test_renderers_and_ranks_go_to_their_nodes_where_nodes_are_labelled():
    found = Placement.of([node(0), node(2, TRAINER), node(4, RENDERER)])
    assert (found.renderer, found.trainer) == (placement.RENDERER, TRAINER)


def test_a_cluster_whose_renderers_are_still_to_come_is_a_labelled_one():
    assert Placement.of([node(2, TRAINER)]).renderer == placement.RENDERER


def test_ranks_stay_off_renderer_nodes_where_none_is_for_them():
    nodes = [node(2), node(4, RENDERER)]
    capacity = Capacity.of(nodes, Placement.of(nodes), ScalingConfig(num_ranks=4))
    assert (capacity.ranks, capacity.render_tasks) == (2, 4)


def test_dead_nodes_count_for_nothing():
    nodes = [node(2), node(8, alive=False)]
    assert Capacity.of(nodes, Placement.of(nodes), ScalingConfig()).render_tasks == 1


def test_a_rank_and_a_gpu_must_be_on_the_same_node():
    nodes = [node(0.5, gpus=1), node(8)]
    scaling = ScalingConfig(use_gpu=True)
    assert Capacity.of(nodes, Placement.of(nodes), scaling).ranks == 0


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        ({}, [node(2)], None),
        ({"num_ranks": 2}, [node(1), node(1)], "room for 0 render tasks"),
        ({"num_ranks": 4}, [node(2)], "room for 2 of 4 ranks"),
        ({"num_ranks": 4, "min_ranks": 1}, [node(2, TRAINER), node(1, RENDERER)], None),
        ({"min_renderers": 8}, [node(2, TRAINER), node(4, RENDERER)], "for 4 render tasks .*is 8"),
        ({}, [node(2, TRAINER)], "room for 0 render tasks .*--labels=ray-subcluster=renderer"),
    ],
)
def test_what_is_missing_is_named(make_config, changes, nodes, expected):
    scaling = {"cpus_per_rank": 1, "renderer_cpus": 1, "max_renderers": None} | changes
    found = shortage(make_config(scaling=scaling), nodes)
    assert (found is None) if expected is None else re.search(expected, found or "")


def test_blocks_must_fit_into_the_object_store(make_config):
    found = shortage(make_config(), [node(4)], block_bytes=300_000_000)
    assert found is not None
    assert "6 blocks of 3e+08 bytes" in found


def test_an_evaluation_must_fit_somewhere(make_config, colours):
    config = make_config(evaluation={"tasks": (f"retrieval:{colours}",), "cpus": 3})
    assert "no node has evaluation.cpus=3" in (shortage(config, [node(2)]) or "")
    on_gpus = make_config(evaluation={"tasks": (f"retrieval:{colours}",), "gpus": 0.5})
    expected = "evaluation.gpus=0.5 beside the ranks; the most is 3 CPUs, and 0 GPUs"
    assert expected in (shortage(on_gpus, [node(4)]) or "")
    # The rank takes the only one.
    on_gpus = dataclasses.replace(
        on_gpus, scaling=dataclasses.replace(on_gpus.scaling, use_gpu=True)
    )
    assert shortage(on_gpus, [node(4, gpus=1)]) is not None
    assert shortage(on_gpus, [node(4, gpus=2)]) is None


def test_machines_for_evaluations_are_asked_for_too(make_config, colours, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda **what: asked.append(what))
    evaluation = {"tasks": (f"retrieval:{colours}",), "cpus": 3, "gpus": 1}
    placement._ask_for_machines(make_config(evaluation=evaluation), Placement())
    assert asked[0]["bundles"][-1] == {"CPU": 3, "GPU": 1}
    assert len(asked[0]["bundles"]) == len(asked[0]["bundle_label_selectors"])


def test_nodes_that_come_in_time_are_waited_for(make_config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    looks = iter([[node(1)], [node(1)], [node(1), node(1)]])
    asked, said = [], []
    monkeypatch.setattr(placement.ray, "nodes", lambda: next(looks))
    monkeypatch.setattr(placement, "_ask_for_machines", lambda *words: asked.append(words))
    monkeypatch.setattr(placement, "_POLL_S", 0.0)
    config = make_config(scaling={"renderer_cpus": 1})
    await_capacity(config, block_bytes=1000, say=said.append)
    assert len(asked) == len(said) == 1
    assert "waiting for up to 600 s: there is room for 0 render tasks" in said[0]


@pytest.mark.parametrize(
    ("possible", "batch", "expected"), [(8, 10_240, 8), (7, 10_240, 5), (3, 16, 2), (0, 16, 0)]
)
def test_only_numbers_of_ranks_that_divide_the_batch_are_used(possible, batch, expected):
    assert whole_batch_ranks(possible, batch) == expected


FIGURES = StreamFigures(
    rows_per_s=1000,
    workers=4,
    queue_batches=0.1,
    wait_ratio=0.5,
    ms_per_row={"read": 1.0, "decode": 2.5, "render": 0.5},
    cpu_ms_per_row={"read": 0.5, "decode": 2.5, "render": 0.5},
)
CAPACITY = Capacity(1, 16, 1e9, ((1.0, 0.0),), is_shared=True)


@pytest.mark.parametrize(
    ("changes", "cap", "expected"),
    [
        ({"wait_ratio": 0.01}, 4, "device: ranks wait for data 1.0% of the time"),
        # 1000 rows/s in half of the time are 2000 when nobody waits; each takes 4 ms.
        ({}, 4, "decode: .* renderers: raise scaling.max-renderers to 8"),
        ({"workers": 16.0}, None, "decode: .* add nodes for 1 more render tasks"),
        ({"workers": 1.0}, 4, "decode: .* though 1.0 of 4 render tasks are at work"),
        (
            {"ms_per_row": {"read": 9.0, "decode": 1.0, "render": 0.1}},
            4,
            "read: .* waiting for storage; raise data.run-length",
        ),
        (
            {"ms_per_row": {"read": 1.0, "decode": 9.0, "render": 0.1}},
            4,
            "decode: .* waiting for a core that ranks or other programs use; render on nodes",
        ),
    ],
)
def test_the_verdict_names_the_stage_and_what_to_raise(changes, cap, expected):
    found = verdict(
        dataclasses.replace(FIGURES, **changes), ScalingConfig(max_renderers=cap), CAPACITY
    )
    assert re.search(expected, found), found


def test_the_verdict_names_the_cheapest_remedy_first():
    scaling = ScalingConfig(max_renderers=4)
    large, small = PictureSides(2600, 224), PictureSides(500, 224)
    found = verdict(FIGURES, scaling, CAPACITY, pictures=large)
    assert "decoding is 62% of a render task's work: pictures are 2600 px, the canvas 224" in found
    assert found.endswith("prepare … --max-side-px 448")
    assert "raise scaling.max-renderers" in verdict(FIGURES, scaling, CAPACITY, pictures=small)
    slow = dataclasses.replace(FIGURES, ms_per_row={"read": 1.0, "decode": 9.0, "render": 0.1})
    apart = dataclasses.replace(CAPACITY, is_shared=False)
    assert "a core that other programs use; free the nodes that render" in verdict(
        slow, scaling, apart
    )


def test_nodes_that_hold_ranks_and_render_are_shared():
    both, apart = [node(4)], [node(2, TRAINER), node(4, RENDERER)]
    scaling = ScalingConfig()
    assert Capacity.of(both, Placement.of(both), scaling).is_shared
    assert not Capacity.of(apart, Placement.of(apart), scaling).is_shared


def test_a_node_that_comes_or_goes_counts_at_the_next_look(monkeypatch):
    nodes = [node(2, TRAINER), node(4, RENDERER)]
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    watch = ClusterWatch(ScalingConfig(), Placement.of(nodes))
    assert watch.poll() == []
    nodes.append(node(4, RENDERER))
    (joined,) = watch.poll()
    assert joined.endswith("(renderer) joined; 8 render tasks at a time now")
    assert watch.capacity.render_tasks == 8
    nodes[1]["Alive"] = False
    (left,) = watch.poll()
    assert left.endswith("(renderer) left; 4 render tasks at a time now")
    assert watch.poll() == []
    assert watch.capacity.render_tasks == 4
