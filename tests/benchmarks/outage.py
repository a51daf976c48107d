"""Training while MLflow is away: `python -m tests.benchmarks.outage [--seconds 60]`.

Trains `demo` on an MLflow server of its own, kills the server in mid-run for so long and starts it
again. Prints pairs/s before, during and after, by the time stamps of the steps in MLflow, and how
many steps are missing or there twice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from pipelines.config.presets import demo
from pipelines.tracking.mlflow_client import connect
from tests.benchmarks import report
from tests.integration.mlflow_server import MlflowServer
from tests.integration.processes import start_command


def run_id_of(client: MlflowClient) -> str | None:
    experiment = client.get_experiment_by_name("clippo")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return runs[0].info.run_id if runs else None


def wait_for_step(client: MlflowClient, step: int) -> None:
    run_id = None
    while True:
        run_id = run_id or run_id_of(client)
        history = client.get_metric_history(run_id, "train/loss") if run_id else []
        if history and history[-1].step >= step:
            return
        time.sleep(1.0)


def pairs_per_s(points: Sequence[Metric], start_s: float, end_s: float) -> float:
    """Over the steps that end in that time."""
    seconds = [
        (later.timestamp - earlier.timestamp) / 1000
        for earlier, later in pairwise(points)
        if start_s <= later.timestamp / 1000 <= end_s
    ]
    return demo().train.global_batch_size * len(seconds) / sum(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="that the server is away")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--first", type=int, default=150, help="step at which it goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        server = MlflowServer(Path(scratch))
        server.start()
        client = connect(server.uri)
        process = start_command(
            *("train", "demo", "--train.steps", str(arguments.steps)),
            *("--train.log-every", "1"),
            *("--storage.root", f"{scratch}/runs", "--tracking.uri", server.uri),
            # What runs beside training at checkpoints would be another reason to be slower.
            *("--train.checkpoint-every", str(arguments.steps), "--evaluation.tasks"),
            "--tracking.no-pictures",
        )
        wait_for_step(client, arguments.first)
        server.kill()
        gone = time.time()
        time.sleep(arguments.seconds)
        # Starting takes the server's own CPU time: what is measured ends before.
        back = time.time()
        server.start()
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        run_id = run_id_of(client)
        assert run_id is not None
        points = sorted(client.get_metric_history(run_id, "train/loss"), key=lambda p: p.step)
        server.kill()
    steps = [point.step for point in points]
    missing = set(range(1, arguments.steps + 1)) - set(steps)
    warm = points[min(50, len(points) - 1)].timestamp / 1000
    figures = {
        "MLflow away": {
            "seconds": back - gone,
            "steps_meanwhile": float(sum(gone <= p.timestamp / 1000 <= back for p in points)),
            "pairs_per_s_before": pairs_per_s(points, warm, gone),
            "pairs_per_s_meanwhile": pairs_per_s(points, gone, back),
            "pairs_per_s_afterwards": pairs_per_s(points, back + 10, time.time()),
            "steps_missing": float(len(missing)),
            "steps_twice": float(len(steps) - len(set(steps))),
        }
    }
    report.show(figures)
    report.write("outage", figures)


if __name__ == "__main__":
    main()
