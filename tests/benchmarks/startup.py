"""From the command to the first step: `python -m tests.benchmarks.startup [--rounds 3]`.

Trains `demo` for a few steps and prints the seconds until its first step had been made, and the CPU
time that its processes had taken by then.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import NamedTuple

import psutil

from pipelines.datasets.prepare.registry import prepare_missing
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


class Sample(NamedTuple):
    """CPU time of each kind of process until a time."""

    wall_s: float
    cpu_s: dict[str, float]


def role_of(command_line: str, *, is_driver: bool) -> str:
    if is_driver:
        return "command"
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


def start_up(root: str, run: str) -> dict[str, float]:
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
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        # A folder for each: the first run of one makes MLflow's database.
        with tempfile.TemporaryDirectory() as root:
            rounds.append(start_up(root, f"run-{number}"))
    names = dict.fromkeys(name for found in rounds for name in found)
    figures = {
        "median": {n: statistics.median(one.get(n, 0.0) for one in rounds) for n in names},
        **{f"round {n}": {"first_step_s": one["first_step_s"]} for n, one in enumerate(rounds)},
    }
    report.show(figures)
    report.write("startup", figures)


if __name__ == "__main__":
    main()
