"""One run from the command line to MLflow, on two ranks: killed, resumed, evaluated."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clippo_core.config import to_json
from pipelines.config.resolution import resolve
from pipelines.reporting.stored import stored_results
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_client import TrackedRun
from tests.integration.processes import run_command, start_command, wait_for_checkpoint
from tests.integration.test_kills import planned_keys, samples_per_step

STEPS, EVERY = 80, 20
#: The driver looks by the clock, not by the step.
BY_THE_CLOCK = {"memory/object_store_gb"}


@pytest.mark.ray
@pytest.mark.smoke
def test_a_killed_run_is_resumed_and_evaluated_and_mlflow_has_all_of_it(
    make_config, colours: Path, tmp_path: Path
):
    config = make_config(
        train={"steps": STEPS, "checkpoint_every": EVERY},
        scaling={"num_ranks": 2},
        evaluation={
            "tasks": (f"zero_shot:{colours}",),
            "templates": ("a {} patch",),
            "cpus": 0.25,
        },
        tracking={"pictures": True},
    )
    (tmp_path / "tiny.json").write_text(to_json(config))
    folder = Location.of(config.storage.root) / "run"

    driver = start_command("train", "tiny.json", cwd=tmp_path, env=environment())
    wait_for_checkpoint(folder, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert whole_checkpoints(folder)[-1][0] < STEPS, "it was to be killed in mid-training"

    printed = run_command("resume", "runs/run", cwd=tmp_path, env=environment())
    step, checkpoint = whole_checkpoints(folder)[-1]
    assert step == STEPS
    assert printed.splitlines()[-1] == checkpoint.uri
    assert len({name.partition("-rank")[0] for name in (folder / "samples").names()}) == 2
    assert samples_per_step(folder, ranks=2) == planned_keys(resolve(config))

    task = f"retrieval:{colours}"
    run_command("evaluate", "runs/run", "--tasks", task, cwd=tmp_path, env=environment())
    results = stored_results(folder / "evaluations" / checkpoint.name)
    assert {name.partition("/")[0] for name in results} == {"zero_shot", "retrieval"}
    assert {result["status"] for result in results.values()} == {"ok"}
    check_mlflow(TrackedRun(**(folder / "mlflow.json").read_json()))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def check_mlflow(tracked: TrackedRun) -> None:
    """One finished run has every step once, the evaluations of all checkpoints, and pictures."""
    client = MlflowClient(tracked.uri)
    run = client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    steps = {
        name: [point.step for point in client.get_metric_history(tracked.run_id, name)]
        for name in run.data.metrics.keys() - BY_THE_CLOCK
    }
    for name, found in steps.items():
        assert len(found) == len(set(found)), f"{name} was logged twice for a step"
    assert sorted(steps["train/loss"]) == list(range(1, STEPS + 1))
    checkpoints = list(range(EVERY, STEPS + 1, EVERY))
    assert sorted(steps["eval/zero_shot/colours/accuracy"]) == checkpoints

    assert {data.dataset.name for data in run.inputs.dataset_inputs} == {"colours"}
    pictures = client.list_artifacts(tracked.run_id, f"pictures/step_{STEPS:08d}/batch")
    assert {"pairs.png", "similarity.png"} <= {Path(file.path).name for file in pictures}
    models = client.search_logged_models([tracked.experiment_id])
    assert str(STEPS) in {model.tags["clippo.step"] for model in models}
    children = client.search_runs(
        [tracked.experiment_id], f"tags.`mlflow.parentRunId` = '{tracked.run_id}'"
    )
    measured = {
        (child.data.tags["clippo.task"], child.data.tags["clippo.step"]) for child in children
    }
    expected = {("zero_shot", str(step)) for step in checkpoints} | {("retrieval", str(STEPS))}
    assert measured == expected
    assert {child.info.status for child in children} == {"FINISHED"}
