"""From the command to the first step: `python -m tests.benchmarks.startup [--rounds 3]`.

Trains `demo` for a few steps and prints the seconds until its first step had been made, and the CPU
time that its processes had taken by then; in turns with a run whose workers are no forks
(`pipelines.forking`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import NamedTuple

import psutil

from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.forking import SWITCH
from pipelines.tracking.mlflow_client import connect
from tests.benchmarks import report
from tests.integration.processes import start_command

EVERY_S = 0.5
ROLES = {
    "ray::RayTrainWorker": "rank",
    "ray::TrainController": "controller of Ray Train",
    "ray::": "other tasks and actors",
    "ray::IDLE": "idle workers of Ray",
}
FORKING = "pipelines.forking.server"
WAYS = {"forked workers": "1", "workers that import": "0"}


class Sample(NamedTuple):
    """CPU time of each kind of process until a time."""

    wall_s: float
    cpu_s: dict[str, float]


def role_of(command_line: str, *, is_driver: bool) -> str:
    if is_driver:
        return "command"
    if FORKING in command_line:
        return "server that forks"
    fitting = [title for title in ROLES if command_line.startswith(title)]
    return ROLES[max(fitting, key=len)] if fitting else "Ray itself"


def watch(process: subprocess.Popen[str]) -> list[Sample]:
    """Follow a run to its end."""
    samples: list[Sample] = []
    last: dict[int, tuple[str, float]] = {}
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(process.pid)
            for one in (command, *command.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    title = " ".join(one.cmdline())
                    role = role_of(title, is_driver=one.pid == process.pid)
                    last[one.pid] = (role, times.user + times.system)
        cpu_s: dict[str, float] = {}
        for role, seconds in last.values():
            cpu_s[role] = cpu_s.get(role, 0.0) + seconds
        samples.append(Sample(time.time(), cpu_s))
        time.sleep(EVERY_S)
    return samples


def start_up(root: str, run: str, *, forks: str) -> dict[str, float]:
    os.environ[SWITCH] = forks
    started = time.time()
    process = start_command(
        *("train", "demo", "--train.steps", "20", "--train.checkpoint-every", "1000"),
        *("--storage.root", root, "--storage.run", run, "--evaluation.tasks"),
    )
    samples = watch(process)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    client = connect(f"sqlite:///{root}/mlflow.db")
    run_id = report.run_id_of(client, run)
    first = min(client.get_metric_history(run_id, "train/loss"), key=lambda point: point.step)
    (waited,) = client.get_metric_history(run_id, "data/first_batch_s")
    first_s = float(first.timestamp) / 1000
    until = [sample for sample in samples if sample.wall_s <= first_s][-1]
    return {
        "first_step_s": first_s - started,
        "rank_waited_for_first_batch_s": waited.value,
        "cpu_s": sum(until.cpu_s.values()),
        **{f"cpu_s: {role}": seconds for role, seconds in until.cpu_s.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    prepare_missing(["fashion_mnist/train", "fashion_mnist/test"])
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way, forks in WAYS.items():
            # A folder for each: the first run of one makes MLflow's database.
            with tempfile.TemporaryDirectory() as root:
                rounds[way].append(start_up(root, f"run-{number}", forks=forks))
    first = {way: [found["first_step_s"] for found in rounds[way]] for way in WAYS}
    ratios = [ours / other for ours, other in zip(*first.values(), strict=True)]
    figures = {
        way: {key: statistics.median(one.get(key, 0.0) for one in found) for key in found[0]}
        for way, found in rounds.items()
    }
    figures |= {
        f"first_step_s of each round: {way}": {
            str(number): seconds for number, seconds in enumerate(first[way])
        }
        for way in WAYS
    }
    figures["ratio of the first step"] = {"median": statistics.median(ratios)}
    report.show(figures)
    report.write("startup", figures)


if __name__ == "__main__":
    main()
