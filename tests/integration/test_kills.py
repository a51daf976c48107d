"""Whatever is killed, whenever, with any number of workers: the samples of each step are the same.

CLIPPO_KILLS=N tries N random cases instead of the few that every test run makes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clippo_core.codec import to_json
from pipelines.resolve import resolve
from pipelines.storage import Location, whole_checkpoints

ROOT = Path(__file__).parents[2]
STEPS = 400
#: (victim, renderers, ranks) that every run of the tests makes; further ones are drawn.
CASES = [("renderer", 2, 1), ("rank", 1, 2), ("driver", 4, 2)]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def cases() -> list[tuple[str, int, int]]:
    count = int(os.environ.get("CLIPPO_KILLS", len(CASES)))
    draw = random.Random(0)
    drawn = [
        (draw.choice(["renderer", "rank", "driver"]), draw.choice([1, 2, 4]), draw.choice([1, 2]))
        for _ in range(count)
    ]
    return (CASES + drawn)[:count]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


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
    config = make_config(
        train={"steps": STEPS, "checkpoint_every": 20, "seed": seed},
        scaling={"max_renderers": renderers, "renderer_cpus": 0.25, "num_ranks": ranks},
    )
    (tmp_path / "run.json").write_text(to_json(config))
    run = Location.of(config.storage.root) / "run"
    driver = start("train", str(tmp_path / "run.json"))
    moment = random.Random(seed).uniform(0, 0.5)
    while not whole_checkpoints(run):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.01)
    time.sleep(moment)
    kill(victim, driver)
    output, _ = driver.communicate(timeout=400)
    if driver.returncode != 0:
        assert victim == "driver", output
        resumed = start("resume", run.uri)
        output, _ = resumed.communicate(timeout=400)
        assert resumed.returncode == 0, output
    plan = resolve(config).stream.plan
    planned = {step: [f"s{row:04d}" for row in plan.batch(step).row] for step in range(STEPS)}
    assert samples_per_step(run, ranks) == planned
