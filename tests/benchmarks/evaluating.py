"""Training with evaluations beside it: `python -m tests.benchmarks.evaluating [--rounds 2]`.

Trains `demo` on this machine without evaluations and with its own beside it, in turn. Prints
pairs/s from the first checkpoint to the last one, the seconds that training lost, and the CPU time
that the evaluations took meanwhile.
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

from pipelines.ingest.prepare.registry import prepare_missing
from pipelines.presets import demo
from pipelines.tracking.mlflow_tracker import connect
from tests.benchmarks import report
from tests.integration.processes import start_command

TITLE = "ray::_evaluate_in_background"


class Sample(NamedTuple):
    """CPU time that the evaluations had taken at a time."""

    wall_s: float
    cpu_s: float


def watch(process: subprocess.Popen[str]) -> list[Sample]:
    """Follow a run to its end; the start of an evaluation's process counts as the evaluation's."""
    counted: dict[int, float] = {}
    samples, taken = [Sample(time.time(), 0.0)], 0.0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if not " ".join(child.cmdline()).startswith(TITLE):
                        continue
                    times = child.cpu_times()
                    now = times.user + times.system
                    taken += now - counted.get(child.pid, 0.0)
                    counted[child.pid] = now
        samples.append(Sample(time.time(), taken))
        time.sleep(0.25)
    return samples


def train(root: str, run: str, steps: int, every: int, *options: str) -> dict[str, float]:
    process = start_command(
        *("train", "demo", "--train.steps", str(steps), "--train.checkpoint-every", str(every)),
        *("--storage.root", root, "--storage.run", run, "--tracking.no-pictures", *options),
    )
    samples = watch(process)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    client = connect(f"sqlite:///{root}/mlflow.db")
    points = client.get_metric_history(report.run_id_of(client, run), "train/loss")
    at = {point.step: point.timestamp / 1000 for point in points}
    meanwhile = [sample.cpu_s for sample in samples if at[every] <= sample.wall_s <= at[steps]]
    return {
        "seconds": at[steps] - at[every],
        "pairs_per_s": demo().train.global_batch_size * (steps - every) / (at[steps] - at[every]),
        "evaluations_cpu_s": meanwhile[-1] - meanwhile[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    arguments = parser.parse_args()
    prepare_missing(["fashion_mnist/train", "fashion_mnist/test"])
    competitors = {"alone": ["--evaluation.tasks"], "with evaluations": []}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in competitors}
    with tempfile.TemporaryDirectory() as root:
        for number in range(arguments.rounds):
            for name, options in competitors.items():
                run = f"{name.replace(' ', '-')}-{number}"
                found = train(root, run, arguments.steps, arguments.every, *options)
                rounds[name].append(found)
    figures = {
        name: {key: statistics.median(found[key] for found in several) for key in several[0]}
        for name, several in rounds.items()
    }
    alone, beside = figures["alone"], figures["with evaluations"]
    figures["compared"] = {
        "pairs_per_s_ratio": beside["pairs_per_s"] / alone["pairs_per_s"],
        "seconds_lost": beside["seconds"] - alone["seconds"],
        "seconds_lost_of_evaluations_cpu_s": (beside["seconds"] - alone["seconds"])
        / beside["evaluations_cpu_s"],
    }
    report.show(figures)
    report.write("evaluating", figures)


if __name__ == "__main__":
    main()
