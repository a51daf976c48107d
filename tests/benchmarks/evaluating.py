"""Training with evaluations beside it: `python -m tests.benchmarks.evaluating [--steps 300]`.

Trains `demo` on this machine with its own evaluations, which are stopped and go on by turns of some
seconds: so both see the same minutes of a machine whose speed varies. Prints pairs/s of either, the
seconds that training lost, and the CPU time that the evaluations took for them.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import psutil

from pipelines.config.presets import demo
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.tracking.mlflow_client import connect
from tests.benchmarks import report
from tests.integration.processes import start_command

TITLE = "ray::evaluate"
TURN_S = 8.0
SETTLE_S = 0.5


class Turn(NamedTuple):
    """Some seconds with evaluations at work, or with all of them stopped."""

    start_s: float
    stop_s: float
    is_beside: bool
    cpu_s: float


def evaluations(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(child.cmdline()).startswith(TITLE):
                    yield child


def take_turns(process: subprocess.Popen[str]) -> list[Turn]:
    """Let evaluations work in every other turn, to the end of the run."""
    turns: list[Turn] = []
    taken: dict[int, float] = {}  # by process, of those that have ended, too
    while process.poll() is None:
        is_beside = len(turns) % 2 == 0
        started, before = time.time(), sum(taken.values())
        while time.time() < started + TURN_S and process.poll() is None:
            for evaluation in evaluations(process):
                with suppress(psutil.NoSuchProcess):
                    # Each time, since some begin in the middle of a turn.
                    evaluation.send_signal(signal.SIGCONT if is_beside else signal.SIGSTOP)
                    times = evaluation.cpu_times()
                    taken[evaluation.pid] = times.user + times.system
            time.sleep(0.25)
        turns.append(Turn(started, time.time(), is_beside, sum(taken.values()) - before))
    return turns


def pairs_per_s(turn: Turn, at: list[float]) -> float | None:
    """Of the steps that ended in a turn; None: too few for a rate."""
    within = [end for end in at if turn.start_s + SETTLE_S <= end <= turn.stop_s]
    if len(within) < 4:
        return None
    return demo().train.global_batch_size * (len(within) - 1) / (within[-1] - within[0])


def figures_of(turns: list[Turn], at: list[float]) -> dict[str, float]:
    """Of the turns after the first checkpoint, without those in which there was nothing to do."""
    rates = [
        (turn, pairs_per_s(turn, at))
        for turn in turns
        if turn.start_s >= at[0] and turn.stop_s <= at[-1]
    ]
    beside = [(turn, rate) for turn, rate in rates if turn.is_beside and turn.cpu_s and rate]
    alone = [rate for turn, rate in rates if not turn.is_beside and rate]
    if not beside or not alone:
        raise SystemExit("too few turns with evaluations to do, and without; raise --steps")
    rate = statistics.mean(rate for _, rate in beside)
    seconds = sum(turn.stop_s - turn.start_s for turn, _ in beside)
    lost, taken = seconds * (1 - rate / statistics.mean(alone)), sum(t.cpu_s for t, _ in beside)
    return {
        "turns_beside": len(beside),
        "turns_alone": len(alone),
        "pairs_per_s_alone": statistics.mean(alone),
        "pairs_per_s_beside": rate,
        "seconds_beside": seconds,
        "seconds_lost": lost,
        "evaluations_cpu_s": taken,
        "seconds_lost_per_cpu_s": lost / taken,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=60, help="steps between checkpoints")
    arguments = parser.parse_args()
    prepare_missing(["fashion_mnist/train", "fashion_mnist/test"])
    with tempfile.TemporaryDirectory() as root:
        process = start_command(
            *("train", "demo", "--train.steps", str(arguments.steps), "--tracking.no-pictures"),
            *("--train.checkpoint-every", str(arguments.every)),
            *("--storage.root", root, "--storage.run", "run"),
        )
        turns = take_turns(process)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        client = connect(f"sqlite:///{root}/mlflow.db")
        points = client.get_metric_history(report.run_id_of(client, "run"), "train/loss")
    at = sorted(point.timestamp / 1000 for point in points if point.step > arguments.every)
    figures = {"demo with evaluations": figures_of(turns, at)}
    report.show(figures)
    report.write("evaluating", figures)


if __name__ == "__main__":
    main()
