"""Reports of rank 0 to MLflow and to the driver, and its checkpoints."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clippo_core.optim import schedule_multiplier
from clippo_core.training.state import Snapshot
from pipelines.config.derived import chance_of
from pipelines.runtime.run_checkpoints import checkpoint_name, commit_checkpoint
from pipelines.runtime.storage import Location, check_owner
from pipelines.tracking.mlflow_queue import MlflowQueue
from pipelines.training.bottleneck import StreamFigures, StreamWindow
from pipelines.training.exchange import Totals
from pipelines.training.gauges import Gauges, shares_of_sources
from pipelines.training.monitor import MonitorClient
from pipelines.training.trainer import RankJob

#: Batches of rank 0 whose nodes are counted: those that render now.
RECENT_BATCHES = 32


class Reporter:
    """Tells MLflow and the driver what the ranks found, and writes checkpoints."""

    def __init__(self, job: RankJob, gauges: Gauges, sources: Sequence[str]) -> None:
        """Start the logging thread.

        Args:
            job: the attempt.
            gauges: this rank's measurements.
            sources: names of the data sets.
        """
        self._job, self._gauges, self._sources = job, gauges, sources
        self._monitor = MonitorClient(job.monitor)
        self._logger = MlflowQueue(self._monitor.tracked_run(), spool=spool_path(job.run))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._commit: Future[None] | None = None
        self._window, self._all = StreamWindow(), StreamWindow()
        self._since_logged: list[Totals] = []
        self._figures: StreamFigures | None = None
        self._nodes: deque[str] = deque(maxlen=RECENT_BATCHES)
        self._is_first_report = True

    @property
    def is_stop_wanted(self) -> bool:
        """Tell whether the driver wants the run to stop, by its last answer."""
        return self._monitor.is_stop_wanted

    def step_made(self, node: str) -> None:
        """Take in which node prepared a step's batch, and what the driver answered meanwhile."""
        self._nodes.append(node)
        self._monitor.poll()

    def report(
        self, step: int, totals: Totals, gauges: Mapping[str, float], *, first_batch_s: float
    ) -> None:
        """Tell the driver of the steps up to `step`, and MLflow where it is one that is logged.

        Args:
            step: the last one that was made.
            totals: figures of all ranks since the last report.
            gauges: measurements of the ranks at this step, where it is logged.
            first_batch_s: seconds that the first batch took, which is start-up.
        """
        self._since_logged.append(totals)
        for window in (self._window, self._all):
            window.add(
                totals.effort,
                steps=totals.num_steps,
                elapsed_s=totals.elapsed_s,
                wait_s=totals.wait_s,
            )
        train = self._job.config.train
        if train.is_logged(step):
            metrics = {**self._metrics(step, totals), **gauges}
            if self._is_first_report:
                metrics["data/first_batch_s"] = first_batch_s
            self._logger.log(step, metrics)
            self._window, self._is_first_report = StreamWindow(), False
            self._since_logged = []
            self._figures = self._all.figures(train.global_batch_size)
        said = {
            "loss": float(totals.metrics["loss"][-1]),
            "rejected": float(sum(totals.rejected.values())),
        }
        self._monitor.update(step, said, self._figures)

    def _metrics(self, step: int, totals: Totals) -> dict[str, float]:
        """Return the means over the steps since the last point in the charts, and rates."""
        job, config, parts = self._job, self._job.config, self._since_logged
        figures = self._window.figures(config.train.global_batch_size)
        means = {
            f"train/{name}": float(np.concatenate([t.metrics[name] for t in parts]).mean())
            for name in totals.metrics
        }
        chance = chance_of(job.classifier, config)
        multiplier = schedule_multiplier(
            config.optim.schedule, step - 1, total_steps=config.train.steps
        )
        return {
            **means,
            "train/loss_at_chance": chance,
            "train/loss_over_chance": means["train/loss"] / chance if chance else 0.0,
            "train/learning_rate": config.optim.learning_rate * multiplier,
            "train/num_ranks": self._gauges.num_ranks,
            "speed/pairs_per_s": figures.rows_per_s,
            "data/rejected": sum(totals.rejected.values()),
            **{f"rejected/{name}": count for name, count in totals.rejected.items()},
            **figures.metrics(),
            # The charts' lists show last values, which say nothing of a start in want of data.
            "data/wait_ratio_of_run": self._all.figures(config.train.global_batch_size).wait_ratio,
            "stream/nodes": len(set(self._nodes)),
            **self._gauges.utilisation(figures.rows_per_s),
            **shares_of_sources(job.stream.plan, self._sources, step),
        }

    def save(self, snapshot: Snapshot, step: int) -> None:
        """Write a checkpoint in a thread, after the one before."""
        self._wait_for_commit()
        self._commit = self._writer.submit(self._save, snapshot, step)

    def close(self) -> None:
        """Wait for the checkpoint under way, and send what is left to MLflow."""
        try:
            self._wait_for_commit()
        finally:
            self._writer.shutdown()
            self._logger.close()

    def _save(self, snapshot: Snapshot, step: int) -> None:
        # Flushed first: the steps before a checkpoint are logged when it appears.
        self._logger.flush()
        check_owner(self._job.run, self._job.attempt)
        target = self._job.run / "checkpoints" / checkpoint_name(step)
        commit_checkpoint(snapshot.save, target)
        self._monitor.checkpoint_committed(target.uri)

    def _wait_for_commit(self) -> None:
        if self._commit is not None:
            self._commit.result()


def spool_path(run: Location) -> Path:
    """Return where metrics wait for MLflow: in a run on a disk, else on this machine."""
    folder = Path(run.uri) if run.is_local else Path(tempfile.gettempdir()) / f"clippo-{run.name}"
    return folder / "mlflow-spool.jsonl"
