"""Training with evaluations beside it: `python -m tests.benchmarks.evaluating [--rounds 1]`.

Trains `demo` on this machine with its own evaluations, and compares the steps while one is at work
with those after it and before the next checkpoint, so that both see the same minutes of a machine
whose speed varies. Prints pairs/s of either, the seconds that training lost, and the CPU time that
the evaluations took meanwhile. With `--control` the same steps of runs without evaluations: what
the checkpoints themselves cost.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import psutil

from pipelines.ingest.prepare.registry import prepare_missing
from pipelines.presets import demo
from pipelines.tracking.mlflow_tracker import connect
from tests.benchmarks import report
from tests.integration.processes import start_command

TITLE = "ray::evaluate"


class Sample(NamedTuple):
    """The CPU time that evaluations had taken at a time, and whether one was at work."""

    wall_s: float
    cpu_s: float
    is_at_work: bool


class Cycle(NamedTuple):
    """From a checkpoint to the next one; an evaluation is at work at first."""

    beside_s: float
    beside_steps: float
    alone_s: float
    alone_steps: float
    cpu_s: float


def watch(process: subprocess.Popen[str]) -> list[Sample]:
    """Follow a run to its end; the start of an evaluation's process counts as the evaluation's."""
    counted: dict[int, float] = {}
    samples, taken = [Sample(time.time(), 0.0, is_at_work=False)], 0.0
    while process.poll() is None:
        is_at_work = False
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if not " ".join(child.cmdline()).startswith(TITLE):
                        continue
                    is_at_work = True
                    times = child.cpu_times()
                    now = times.user + times.system
                    taken += now - counted.get(child.pid, 0.0)
                    counted[child.pid] = now
        samples.append(Sample(time.time(), taken, is_at_work))
        time.sleep(0.25)
    return samples


def train(
    root: str, run: str, steps: int, every: int, *options: str
) -> tuple[dict[int, float], list[Sample]]:
    """When each step ended, and what the evaluations did."""
    process = start_command(
        *("train", "demo", "--train.steps", str(steps), "--train.checkpoint-every", str(every)),
        *("--storage.root", root, "--storage.run", run, "--tracking.no-pictures", *options),
    )
    samples = watch(process)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    client = connect(f"sqlite:///{root}/mlflow.db")
    points = client.get_metric_history(report.run_id_of(client, run), "train/loss")
    return {point.step: point.timestamp / 1000 for point in points}, samples


def cycles_of(
    at: dict[int, float], samples: list[Sample], every: int, *, beside_s: float | None = None
) -> Iterator[Cycle]:
    """The cycles of a run that have both parts; `beside_s` is the first part's where none works."""
    checkpoints = range(every, max(at) + 1, every)
    for first, last in pairwise(checkpoints):
        within = [sample for sample in samples if at[first] <= sample.wall_s < at[last]]
        ends = [sample.wall_s for sample in within if sample.is_at_work]
        until = ends[-1] if beside_s is None and ends else at[first] + (beside_s or 0.0)
        steps = sum(at[first] < at[step] <= until for step in range(first, last + 1))
        middle = first + steps
        if first < middle < last:
            yield Cycle(
                beside_s=at[middle] - at[first],
                beside_steps=steps,
                alone_s=at[last] - at[middle],
                alone_steps=last - middle,
                cpu_s=within[-1].cpu_s - within[0].cpu_s,
            )


def figures_of(cycles: list[Cycle]) -> dict[str, float]:
    """Of all cycles together; what was lost is counted within each of them."""
    pairs = demo().train.global_batch_size
    beside, alone = sum(c.beside_s for c in cycles), sum(c.alone_s for c in cycles)
    lost = sum(c.beside_s - c.beside_steps * c.alone_s / c.alone_steps for c in cycles)
    return {
        "cycles": len(cycles),
        "pairs_per_s_alone": pairs * sum(c.alone_steps for c in cycles) / alone,
        "pairs_per_s_beside": pairs * sum(c.beside_steps for c in cycles) / beside,
        "seconds_beside": beside,
        "seconds_lost": lost,
        "evaluations_cpu_s": sum(c.cpu_s for c in cycles),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--control", action="store_true", help="runs without evaluations as well")
    arguments = parser.parse_args()
    prepare_missing(["fashion_mnist/train", "fashion_mnist/test"])
    evaluated: list[Cycle] = []
    control: list[Cycle] = []
    with tempfile.TemporaryDirectory() as root:
        for number in range(arguments.rounds):
            at, samples = train(root, f"run-{number}", arguments.steps, arguments.every)
            found = list(cycles_of(at, samples, arguments.every))
            evaluated += found
            if arguments.control and found:
                beside_s = sum(cycle.beside_s for cycle in found) / len(found)
                name, length = f"control-{number}", (arguments.steps, arguments.every)
                at, samples = train(root, name, *length, "--evaluation.tasks")
                control += cycles_of(at, samples, arguments.every, beside_s=beside_s)
    assert evaluated, "an evaluation lasted to the next checkpoint each time; raise --every"
    figures = {"with evaluations": figures_of(evaluated)}
    figures["with evaluations"]["seconds_lost_per_cpu_s"] = (
        figures["with evaluations"]["seconds_lost"]
        / figures["with evaluations"]["evaluations_cpu_s"]
    )
    if control:
        figures["without"] = figures_of(control)
    report.show(figures)
    report.write("evaluating", figures)


if __name__ == "__main__":
    main()
