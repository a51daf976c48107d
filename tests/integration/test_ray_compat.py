"""Contracts with Ray: each fails with what changed where a release no longer keeps one."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.train.torch import TorchTrainer

from pipelines.runtime import ray_session

COMPAT = Path(__file__).parents[2] / "pipelines" / "ray_compat.py"


def private_imports() -> list[tuple[str, str]]:
    """Modules and names that ray_compat imports and that Ray does not publish."""
    statements = ast.walk(ast.parse(COMPAT.read_text()))
    found = [node for node in statements if isinstance(node, ast.ImportFrom)]
    private = [node for node in found if "._" in (node.module or "")]
    return [(node.module or "", alias.name) for node in private for alias in node.names]


@pytest.mark.parametrize(("module", "name"), private_imports())
def test_ray_has_the_names_that_it_does_not_publish(module, name):
    assert importlib.util.find_spec(module), f"Ray {ray.__version__} has no module {module} more"
    found = hasattr(importlib.import_module(module), name)
    assert found, f"{module} of Ray {ray.__version__} has no {name} more"


def test_ray_reads_the_environment_variables_that_a_session_sets():
    root = Path(ray.__path__[0])
    folders = (root / name for name in ("_private", "_common", "data", "train/v2"))
    source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    names = ray_session._QUIET | ray_session._RECOVERY | ray_session._ALONE
    unread = [name for name in names if name not in source]
    assert not unread, f"Ray {ray.__version__} reads {unread} no more; ray_session.py sets them"


class Executions(Datasource):
    """One row: the execution index that its plan was made with."""

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        from pipelines.ray_compat import execution_index

        table = pa.table({"index": [execution_index(data_context)]})
        metadata = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(lambda: [table], metadata)]


@pytest.mark.ray
def test_each_iteration_over_a_split_of_a_dataset_is_planned_with_its_number(local_ray):
    (split,) = ray.data.read_datasource(Executions()).streaming_split(1)
    found = [row["index"] for _ in range(3) for row in split.iter_rows()]
    assert found == [0, 1, 2], (
        f"Ray {ray.__version__} no longer plans the execution k of a dataset with "
        "DataContext._execution_idx == k; pipelines/stream delivers a run in such segments"
    )


@pytest.mark.parametrize(("leaving", "expected"), [({}, 6), ({"node 0": 0}, 4)])
def test_the_policy_counts_what_stays_and_divides_the_batch(monkeypatch, leaving, expected):
    from pipelines import ray_compat

    nodes: Any = {f"node {at}": {"CPU": 1.0} for at in range(6)}
    if ray.__version__.startswith("2.59."):
        # Without names: nobody can tell that one leaves.
        nodes, expected = list(nodes.values()), 6
    monkeypatch.setattr(ray_compat, "_get_draining_nodes", lambda: leaving)
    scaling = ray.train.ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1})
    policy = ray_compat.WholeBatchPolicy(scaling, 12)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: nodes)
    decision = policy.make_decision_for_non_running_worker_group()
    assert getattr(decision, "num_workers", None) == expected, (
        f"Ray {ray.__version__} answers {decision}: its ElasticScalingPolicy no longer asks "
        "_count_possible_workers with the resources by node"
    )


def note_rank(config: dict[str, str]) -> None:
    rank = ray.train.get_context().get_world_rank()
    (Path(config["folder"]) / str(rank)).touch()


@pytest.mark.ray
@pytest.mark.slow
def test_a_trainer_starts_as_many_ranks_as_divide_the_batch(local_ray, tmp_path):
    from pipelines.ray_compat import divide_whole_batches

    (tmp_path / "ranks").mkdir()
    trainer = TorchTrainer(
        note_rank,
        train_loop_config={"folder": str(tmp_path / "ranks")},
        scaling_config=ray.train.ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "ray"), name="ranks"),
    )
    divide_whole_batches(trainer, 6)
    trainer.fit()
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {"0", "1", "2"}, (
        f"Ray {ray.__version__} did not start 3 ranks for a batch of 6 where 4 had room: its "
        "trainer no longer takes the scaling_policy of _initialize_and_run_controller"
    )


@pytest.mark.ray
def test_no_node_is_about_to_be_taken_away_from_this_machine(local_ray):
    from pipelines.ray_compat import _get_draining_nodes

    assert _get_draining_nodes() == {}, f"Ray {ray.__version__} no longer gives deadlines by node"
