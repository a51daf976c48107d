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

from clippo_core.config import to_json
from pipelines.config.resolution import resolve
from pipelines.runtime.storage import Location
from tests.integration.processes import start_command, wait_for_checkpoint

#: Long enough for the victim to be at work when the kill comes; rendering runs ahead of training.
STEPS = {"renderer": 400, "rank": 240, "driver": 240}
#: (victim, renderers, ranks) that come first; further ones are drawn. Every run of the tests makes
#: the first one: killed ranks and drivers are in test_training.py as well.
CASES = [("renderer", 2, 1), ("rank", 1, 2), ("driver", 4, 2)]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def cases() -> list[tuple[str, int, int]]:
    count = int(os.environ.get("CLIPPO_KILLS", "1"))
    draw = random.Random(0)
    drawn = [
        (draw.choice(["renderer", "rank", "driver"]), draw.choice([1, 2, 4]), draw.choice([1, 2]))
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


@pytest.mark.parametrize(
    ("seed", "victim", "renderers", "ranks"), [(n, *case) for n, case in enumerate(cases())]
)
def test_a_kill_changes_no_sample(
    make_config, tmp_path, seed: int, victim: str, renderers: int, ranks: int
):
    steps = STEPS[victim]
    config = make_config(
        train={"steps": steps, "checkpoint_every": 20, "seed": seed},
        scaling={"max_renderers": renderers, "renderer_cpus": 0.25, "num_ranks": ranks},
    )
    (tmp_path / "run.json").write_text(to_json(config))
    run = Location.of(config.storage.root) / "run"
    driver = start_command("train", str(tmp_path / "run.json"))
    moment = random.Random(seed).uniform(0, 0.5)
    wait_for_checkpoint(run, driver)
    time.sleep(moment)
    kill(victim, driver)
    output, _ = driver.communicate(timeout=400)
    # A driver that had ended already would show nothing.
    assert driver.returncode == (-signal.SIGKILL if victim == "driver" else 0), output
    if victim == "driver":
        resumed = start_command("resume", run.uri)
        output, _ = resumed.communicate(timeout=400)
        assert resumed.returncode == 0, output
    plan = resolve(config).stream.plan
    planned = {step: [f"s{row:04d}" for row in plan.batch(step).row] for step in range(steps)}
    assert samples_per_step(run, ranks) == planned
