"""Whatever is killed, whenever, with any number of workers: the samples of each step are the same.

CLIPPO_KILLS=N tries N cases instead of the one that every test run makes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from mlflow import MlflowClient

from clippo_core.config import to_json
from pipelines.config.resolution import ResolvedRun, resolve
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_client import TrackedRun
from tests.integration.processes import run_command, start_command, wait_for_checkpoint

#: Long enough for the victims to be at work when the kills come; rendering runs ahead of training.
STEPS = 400
#: (victims one after the other, renderers, ranks) that come first; further ones are drawn. Every
#: run of the tests makes the first one; tests/e2e/test_smoke.py kills a driver.
CASES = [(("renderer", "rank"), 2, 2), (("driver",), 4, 2)]
pytestmark = [pytest.mark.ray, pytest.mark.slow]
Victims = tuple[str, ...]


def cases() -> list[tuple[Victims, int, int]]:
    count = int(os.environ.get("CLIPPO_KILLS", "1"))
    draw = random.Random(0)
    drawn = [
        (
            (draw.choice(["renderer", "rank", "driver"]),),
            draw.choice([1, 2, 4]),
            draw.choice([1, 2]),
        )
        for _ in range(count)
    ]
    return (CASES + drawn)[:count]


def kill(victim: str, driver: subprocess.Popen[str]) -> None:
    """By SIGKILL; of several processes of the kind, the first that is found."""
    if victim == "driver":
        driver.kill()
        return
    title = {"renderer": "ReadRenderPairs", "rank": "RayTrainWorker"}[victim]
    while driver.poll() is None:
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    child.kill()
                    return
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.002)
    pytest.fail(f"no {victim} was seen:\n{driver.communicate()[0]}")


def samples_per_step(run: Location, ranks: int) -> dict[int, list[str]]:
    """Keys of each step; every time that a step was done, it must have seen the same."""
    parts: dict[tuple[int, str], list[str]] = {}
    for name in (run / "samples").names():
        rank = name.partition("-rank")[2].partition("-")[0]
        for row in map(json.loads, (run / "samples" / name).read_bytes().splitlines()):
            known = parts.setdefault((row["step"], rank), row["keys"])
            assert known == row["keys"], f"step {row['step']} saw other samples the second time"
    return {
        step: [key for rank in range(ranks) for key in parts[step, str(rank)]]
        for step in sorted({step for step, _ in parts})
    }


def planned_keys(resolved: ResolvedRun) -> dict[int, list[str]]:
    plan = resolved.stream.plan
    steps = range(resolved.config.train.steps)
    return {step: [f"s{row:04d}" for row in plan.batch(step).row] for step in steps}


@pytest.mark.parametrize(
    ("seed", "victims", "renderers", "ranks"), [(n, *case) for n, case in enumerate(cases())]
)
def test_a_kill_changes_no_sample(
    make_config, tmp_path, seed: int, victims: Victims, renderers: int, ranks: int
):
    config = make_config(
        train={"steps": STEPS, "checkpoint_every": 20, "seed": seed},
        scaling={"max_renderers": renderers, "renderer_cpus": 0.25, "num_ranks": ranks},
    )
    (tmp_path / "run.json").write_text(to_json(config))
    run = Location.of(config.storage.root) / "run"
    driver = start_command("train", str(tmp_path / "run.json"))
    moment = random.Random(seed).uniform(0, 0.5)
    wait_for_checkpoint(run, driver)
    for victim in victims:
        time.sleep(moment)
        kill(victim, driver)
    output, _ = driver.communicate(timeout=400)
    # A driver that had ended already would show nothing.
    is_driver = "driver" in victims
    assert driver.returncode == (-signal.SIGKILL if is_driver else 0), output
    if is_driver:
        run_command("resume", run.uri)
    assert samples_per_step(run, ranks) == planned_keys(resolve(config))
    tracked = TrackedRun(**(run / "mlflow.json").read_json())
    history = MlflowClient(tracked.uri).get_metric_history(tracked.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
