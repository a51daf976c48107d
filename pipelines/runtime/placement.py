"""The choice of nodes for each kind of work, and the check that there are enough of them.

Two labels place the work. Render tasks go to nodes with `ray-subcluster=renderer`: that label is
the one by which Ray Data counts the CPUs that it may use. Ranks go to nodes with
`clippo.role=trainer`. On a machine or cluster that carries neither, everything runs anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from clippo_core.errors import ConfigError
from pipelines.config.settings import RunConfig, ScalingConfig
from pipelines.runtime.ray_session import cluster_address

RENDERER = {"ray-subcluster": "renderer"}
TRAINER = {"clippo.role": "trainer"}
#: Blocks of each rank that Ray Data keeps in flight; fewer would stall the stream.
BLOCKS_PER_RANK = 4
_POLL_S = 1.0


@dataclass(frozen=True)
class Placement:
    """Labels that a node must carry to be given render tasks, or ranks; None allows any node."""

    renderer: Mapping[str, str] | None = None
    trainer: Mapping[str, str] | None = None

    @staticmethod
    def of(nodes: Sequence[Mapping[str, Any]]) -> Placement:
        """Return the placement for the labels of some nodes; without labels, any node will do."""
        labels = [node.get("Labels") or {} for node in nodes if node["Alive"]]
        has_trainers = any(_carries(found, TRAINER) for found in labels)
        if not has_trainers and not any(_carries(found, RENDERER) for found in labels):
            return Placement()
        # Without trainer nodes, ranks stay off the CPUs that Ray Data believes to be its own.
        others = {name: f"!{value}" for name, value in RENDERER.items()}
        return Placement(RENDERER, TRAINER if has_trainers else others)

    def __str__(self) -> str:
        if self.renderer is None:
            return "render tasks and ranks on any node"
        texts = [
            ", ".join(f"{name}={value}" for name, value in selector.items())
            for selector in (self.renderer, self.trainer or {})
        ]
        return f"render tasks on nodes with {texts[0]}, ranks on nodes with {texts[1]}"


@dataclass(frozen=True)
class Capacity:
    """The room that a cluster has for a run.

    Attributes:
        ranks: number of ranks that find a place.
        render_tasks: number of parallel render tasks beside the ranks.
        object_store_bytes: size of the object stores on the nodes that render.
        left_over: CPUs and GPUs of each node beside the ranks, for evaluations.
        is_shared: True if render tasks run on nodes that hold ranks.
    """

    ranks: int
    render_tasks: int
    object_store_bytes: float
    left_over: tuple[tuple[float, float], ...]
    is_shared: bool = False

    @staticmethod
    def of(
        nodes: Sequence[Mapping[str, Any]], placement: Placement, scaling: ScalingConfig
    ) -> Capacity:
        """Return the room for ranks, each on the first node with room, then for render tasks."""
        alive = [node for node in nodes if node["Alive"]]
        left = {node["NodeID"]: dict(node["Resources"]) for node in alive}
        wanted = {"CPU": scaling.cpus_per_rank} | ({"GPU": 1.0} if scaling.use_gpu else {})
        ranks, with_ranks = 0, set[str]()
        for node in alive:
            free = left[node["NodeID"]]
            while ranks < scaling.num_ranks and _matches(node, placement.trainer):
                if any(free.get(name, 0.0) < amount for name, amount in wanted.items()):
                    break
                for name, amount in wanted.items():
                    free[name] -= amount
                ranks += 1
                with_ranks.add(node["NodeID"])
        renderers = [left[node["NodeID"]] for node in alive if _matches(node, placement.renderer)]
        tasks = [math.floor(free.get("CPU", 0.0) / scaling.renderer_cpus) for free in renderers]
        store = sum(free.get("object_store_memory", 0.0) for free in renderers)
        left_over = tuple((free.get("CPU", 0.0), free.get("GPU", 0.0)) for free in left.values())
        is_shared = any(
            node["NodeID"] in with_ranks and _matches(node, placement.renderer) for node in alive
        )
        return Capacity(ranks, sum(tasks), store, left_over, is_shared)

    def running_tasks(self, scaling: ScalingConfig) -> int:
        """Return the number of render tasks that will run at a time."""
        return min(self.render_tasks, scaling.max_renderers or self.render_tasks)

    def _blocks(self, scaling: ScalingConfig) -> int:
        """Return the number of blocks of the stream that are under way at a time."""
        return BLOCKS_PER_RANK * scaling.num_ranks + self.running_tasks(scaling)

    def max_block_bytes(self, scaling: ScalingConfig) -> float:
        """Return the size of blocks with which the object stores are half full."""
        return self.object_store_bytes / 2 / self._blocks(scaling)

    def shortage(self, config: RunConfig, placement: Placement, *, block_bytes: int) -> str | None:
        """Return in words what is missing for the run; None if nothing is.

        Without a check, a run would wait in silence instead of failing.
        """
        scaling = config.scaling
        needed = scaling.min_ranks or scaling.num_ranks
        if self.ranks < needed:
            return (
                f"there is room for {self.ranks} of {needed} ranks of {scaling.cpus_per_rank:g} "
                f"CPUs{' and a GPU' if scaling.use_gpu else ''} each ({placement}); add nodes, or "
                "lower scaling.num-ranks or scaling.cpus-per-rank"
            )
        if self.render_tasks < scaling.min_renderers:
            return (
                f"there is room for {self.render_tasks} render tasks of {scaling.renderer_cpus:g} "
                f"CPUs beside the ranks ({placement}), but scaling.min-renderers is "
                f"{scaling.min_renderers}; add nodes (ray start --address=… "
                "--labels=ray-subcluster=renderer), or lower scaling.renderer-cpus"
            )
        evaluation = config.evaluation
        has_room = any(
            cpus >= evaluation.cpus and gpus >= evaluation.gpus for cpus, gpus in self.left_over
        )
        if evaluation.tasks and not has_room:
            wanted = f"evaluation.cpus={evaluation.cpus:g}"
            if evaluation.gpus:
                wanted += f" and evaluation.gpus={evaluation.gpus:g}"
            cpus, gpus = (max((left[n] for left in self.left_over), default=0) for n in (0, 1))
            return (
                f"no node has {wanted} beside the ranks; the most is {cpus:g} CPUs, and {gpus:g} "
                "GPUs. Lower them, or add nodes"
            )
        blocks = self._blocks(scaling)
        if self.object_store_bytes < blocks * block_bytes:
            return (
                f"the object stores of the nodes that render hold {self.object_store_bytes:.2g} "
                f"bytes, but {blocks} blocks of {block_bytes:.2g} bytes are under way at a time "
                f"({BLOCKS_PER_RANK} per rank and one per render task); give Ray more (ray start "
                "--object-store-memory=…), lower scaling.max-renderers, or use more ranks"
            )
        return None


def await_capacity(config: RunConfig, *, block_bytes: int, say: Callable[[str], None]) -> Placement:
    """Wait until the cluster has room for the run, asking the autoscaler; return the placement.

    Args:
        config: settings of the run.
        block_bytes: least size of a block of the stream.
        say: function that is told once what is waited for.

    Raises:
        ConfigError: if something is missing: at once where no node can come (Ray on this machine
            alone), else after `scaling.start_timeout_s`.
    """
    can_grow = cluster_address() is not None
    deadline = time.monotonic() + (config.scaling.start_timeout_s if can_grow else 0.0)
    is_told = False
    while True:
        nodes = ray.nodes()
        placement = Placement.of(nodes)
        capacity = Capacity.of(nodes, placement, config.scaling)
        shortage = capacity.shortage(config, placement, block_bytes=block_bytes)
        if shortage is None:
            return placement
        if time.monotonic() >= deadline:
            raise ConfigError(shortage)
        if not is_told:
            say(f"waiting for up to {config.scaling.start_timeout_s:g} s: {shortage}")
            _ask_for_machines(config, placement)
            is_told = True
        time.sleep(_POLL_S)


def _ask_for_machines(config: RunConfig, placement: Placement) -> None:
    """Tell the autoscaler the needs of the run; Train and Data ask for themselves later on."""
    scaling, evaluation = config.scaling, config.evaluation
    from ray.autoscaler.sdk import request_resources

    rank = {"CPU": scaling.cpus_per_rank} | ({"GPU": 1.0} if scaling.use_gpu else {})
    bundles = [rank] * scaling.num_ranks + [{"CPU": scaling.renderer_cpus}] * scaling.min_renderers
    selectors = [dict(placement.trainer or {})] * scaling.num_ranks
    selectors += [dict(placement.renderer or {})] * scaling.min_renderers
    if evaluation.tasks:
        bundles.append(
            {"CPU": evaluation.cpus} | ({"GPU": evaluation.gpus} if evaluation.gpus else {})
        )
        selectors.append({})
    request_resources(bundles=bundles, bundle_label_selectors=selectors)


class ClusterWatch:
    """A watch on the room that a cluster has for a run, while nodes come and go."""

    def __init__(self, scaling: ScalingConfig, placement: Placement) -> None:
        """Count the nodes that are there now."""
        self._scaling, self.placement = scaling, placement
        nodes = ray.nodes()
        self._nodes = _addresses(nodes)
        self.capacity = Capacity.of(nodes, placement, scaling)

    def poll(self) -> list[str]:
        """Count anew where nodes came or went; to be called every second or so.

        Returns:
            A line for each node that joined or left since the last call.
        """
        nodes = ray.nodes()
        before, self._nodes = self._nodes, _addresses(nodes)
        if before.keys() == self._nodes.keys():
            return []
        self.capacity = Capacity.of(nodes, self.placement, self._scaling)
        tasks = f"{self.capacity.running_tasks(self._scaling)} render tasks at a time now"
        return [
            *(f"{node} joined; {tasks}" for n, node in self._nodes.items() if n not in before),
            *(f"{node} left; {tasks}" for n, node in before.items() if n not in self._nodes),
        ]


def _addresses(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the nodes that are alive: by their id, what a person calls them."""
    return {
        node["NodeID"]: " ".join(["node", node["NodeManagerAddress"], *_roles(node)])
        for node in nodes
        if node["Alive"]
    }


def _roles(node: Mapping[str, Any]) -> list[str]:
    role = (node.get("Labels") or {}).get("ray-subcluster")
    return [f"({role})"] if role else []


def _matches(node: Mapping[str, Any], selector: Mapping[str, str] | None) -> bool:
    return selector is None or _carries(node.get("Labels") or {}, selector)


def _carries(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return True if labels satisfy a selector of values and "!value"s."""
    return all(
        labels.get(name) != value[1:] if value.startswith("!") else labels.get(name) == value
        for name, value in selector.items()
    )
