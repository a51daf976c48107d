"""What each rank does: take batches from the stream, make steps, save and report."""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray.train
import ray.train.torch
import torch

from clippo_core.config import Precision
from clippo_core.errors import (
    CheckpointError,
    ClippoError,
    ConfigError,
    DivergedError,
    RenderError,
    SampleError,
)
from clippo_core.training.fine_tuning import LabelledBatch, fine_tuning_step
from clippo_core.training.patch_dropping import draw_kept_patches
from clippo_core.training.precision import common_precision, find_precision
from clippo_core.training.state import Snapshot, TrainState
from clippo_core.training.step import PairBatch, Shard, StepMemory, train_step
from pipelines.config.resolution import chance_of
from pipelines.config.settings import RunConfig
from pipelines.datasets.sources import open_source
from pipelines.runtime.run_checkpoints import (
    checkpoint_name,
    commit_checkpoint,
    fetched,
    find_checkpoint,
    whole_checkpoints,
)
from pipelines.runtime.storage import (
    JsonLines,
    Location,
    SupersededError,
    check_owner,
)
from pipelines.stream.batch import (
    PreparedBatch,
    open_renderer,
    open_vocabulary,
)
from pipelines.stream.stream import DATASET, StreamRange, iterate_batches
from pipelines.tracking.mlflow_queue import MlflowQueue
from pipelines.training.bottleneck import StreamFigures, StreamWindow, effort_of
from pipelines.training.gauges import Gauges, shares_of_sources
from pipelines.training.monitor import MonitorClient
from pipelines.training.parallel import (
    collect_objects,
    divide_weights,
    divided_like,
    sum_of_lower_ranks,
    sum_over_ranks,
    this_shard,
    whole_tensor,
)
from pipelines.training.trainer import RankJob

#: Below this many samples a few bad ones are no verdict on the data.
MIN_SAMPLES_BEFORE_ABORT = 1000
#: How often ranks ask whether a node of theirs is about to be taken away; notices come 30 s or more
#: before.
PREEMPTION_POLL_S = 2.0
#: Of rank 0; the nodes that made them are those that render now.
RECENT_BATCHES = 32
#: Steps over which the mean loss is taken when judging whether training diverges.
DIVERGENCE_WINDOW = 50


@dataclass(frozen=True)
class Outcome:
    """How a rank's work ended: done, or with an error that a restart would only meet again."""

    state: Literal["completed", "interrupted", "failed"]
    error: str = ""
    message: str = ""


#: Errors that training again from the last checkpoint would not mend; Ray retries all others.
HOPELESS: dict[str, type[ClippoError]] = {
    kind.__name__: kind
    for kind in (
        CheckpointError,
        ConfigError,
        DivergedError,
        RenderError,
        SampleError,
        SupersededError,
    )
}


def train_on_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry: train from the newest whole checkpoint to the end, or as far as it goes.

    Hopeless errors are returned, not raised: Ray would retry what is raised.
    """
    job: RankJob = settings["job"]
    try:
        rank = Rank(job)
        try:
            outcome = rank.run()
        finally:
            rank.close()
    except Exception as error:
        hopeless = hopeless_cause(error)
        if hopeless is None:
            raise
        outcome = Outcome("failed", type(hopeless).__name__, str(hopeless))
    return asdict(outcome)


def hopeless_cause(error: BaseException) -> BaseException | None:
    """The hopeless error among the causes of `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray wraps what tasks raise, and keeps the original in `cause`.
        original = getattr(cause, "cause", cause)
        if type(original).__name__ in HOPELESS:
            return original
        cause = cause.__cause__
    return None


class Rank:
    """One training process: its state, its part of the stream, and what it reports."""

    def __init__(self, job: RankJob) -> None:
        """Restore the newest whole checkpoint, or start afresh."""
        self._job, self._config = job, job.config
        context = ray.train.get_context()
        self._rank, self._num_ranks = context.get_world_rank(), context.get_world_size()
        self._is_first = self._rank == 0
        check_owner(job.run, job.attempt)
        _set_threads(self._config, context.get_local_world_size())
        self._device = ray.train.torch.get_device()
        self.state, self._rejected = _restored_state(job, self._device)
        self._forward = self._exchanging_model()
        part = f"{job.attempt}-rank{self._rank}"
        self._keys = JsonLines(job.run / "samples", part)
        self._reject_rows = JsonLines(job.run / "rejects", part)
        self._precision: Precision = self._common_precision()
        self._gauges = Gauges(job.config, self._device, self._precision, num_ranks=self._num_ranks)
        self._reporter = Reporter(job, self._gauges, self._num_ranks) if self._is_first else None
        self._recent_losses: deque[float] = deque(maxlen=DIVERGENCE_WINDOW)
        self._preemption = PreemptionNotice()

    def run(self) -> Outcome:
        """Make steps until the run is complete, or the driver wants it to stop."""
        train = self._config.train
        start_step, is_stop_wanted = self.state.step, False
        for batch, wait_s in _timed(self._batches()):
            started = time.perf_counter()
            if batch.step == start_step:
                if self._reporter is not None:
                    self._reporter.first_batch_came(wait_s)
                wait_s = 0.0
            metrics = self._step(batch)
            totals = self._exchange(batch, metrics, wait_s, is_stop_wanted)
            elapsed_s = wait_s + time.perf_counter() - started
            if self._reporter is not None:
                is_stop_wanted = self._reporter.report(self.state.step, metrics, totals, elapsed_s)
            is_last = totals.is_stop_wanted or self.state.step == train.steps
            is_preempted = self._preemption.has_come(totals.wall_s)
            if is_last or is_preempted or self.state.step % train.checkpoint_every == 0:
                self._checkpoint()
            if totals.is_stop_wanted:
                return Outcome("interrupted")
        self._check_rejects(at_end=True)
        return Outcome("completed")

    def close(self) -> None:
        """Finish what is under way."""
        if self._reporter is not None:
            self._reporter.close()

    def _batches(self) -> Iterator[PreparedBatch]:
        """Yield this rank's part of each batch from the state's step on."""
        steps = StreamRange(self.state.step, self._config.train.steps, self._num_ranks)
        shard = ray.train.get_dataset_shard(DATASET)
        assert shard is not None
        return iterate_batches(shard, self._job.stream, steps)

    def _common_precision(self) -> Precision:
        """That of this run's matrix products; with "auto", one that every rank's device has."""
        own = find_precision(self._config.train.precision, self._device)
        return common_precision(collect_objects(own))

    def _exchanging_model(self) -> torch.nn.Module:
        """The model as a step calls it: gradients are averaged over the ranks."""
        train = self._config.train
        for tower in self.state.model.towers:
            tower.recomputes_activations = train.activation_checkpointing
            if train.compile:
                tower.compile_blocks()
        if self._config.scaling.shard_weights:
            self.state.divide(self._config.optim, divide_weights, divided_like)
            return self.state.model
        return ray.train.torch.prepare_model(self.state.model)

    def _step(self, batch: PreparedBatch) -> dict[str, float]:
        with warnings.catch_warnings():
            # The batch is a read-only view of Ray's object store; nothing here writes into it.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images = torch.from_numpy(batch.images)
            found = None if batch.targets is None else torch.from_numpy(batch.targets)
        train = self._config.train
        shard = this_shard(self._forward)
        if found is not None:
            metrics = fine_tuning_step(
                self.state,
                LabelledBatch(images, batch.texts, found),
                self._config.optim,
                total_steps=train.steps,
                precision=self._precision,
                forward=self._forward,
                shard=shard,
                micro_batch_size=train.micro_batch_size,
            )
            return self._figures(metrics, batch, shard)
        kept = self._kept_patches(len(images))
        metrics = train_step(
            self.state,
            PairBatch(images, batch.texts, batch.left_texts, kept),
            self._config.optim,
            total_steps=train.steps,
            precision=self._precision,
            forward=self._forward,
            shard=self._gauges.watch(shard),
            memory=StepMemory(micro_batch_size=train.micro_batch_size, logit_rows=train.logit_rows),
        )
        image_patches = None if kept is None else kept.shape[1]
        return self._figures(metrics, batch, shard, image_patches=image_patches)

    def _figures(
        self,
        metrics: Mapping[str, torch.Tensor],
        batch: PreparedBatch,
        shard: Shard,
        *,
        image_patches: int | None = None,
    ) -> dict[str, float]:
        """A step's metrics as numbers, with the gauges' where it is logged."""
        figures = {name: float(whole_tensor(value)) for name, value in metrics.items()}
        if not self._config.train.is_logged(self.state.step):
            return figures
        return figures | self._gauges.read(batch, shard, image_patches=image_patches)

    def _kept_patches(self, num_images: int) -> torch.Tensor | None:
        """The image patches that this step encodes, the same for any number of ranks."""
        train, step = self._config.train, self.state.step
        drop = train.patch_drop_at(step)
        if not drop:
            return None
        kept = draw_kept_patches(
            drop,
            seed=train.seed,
            step=step,
            first_image=sum_of_lower_ranks(num_images),
            num_images=num_images,
            num_patches=self._config.model.grid_size**2,
        )
        return torch.from_numpy(kept).to(self._device)

    def _exchange(
        self, batch: PreparedBatch, metrics: dict[str, float], wait_s: float, stop: bool
    ) -> Totals:
        """What all ranks need to know of a step; the same on each of them."""
        now = time.time()
        own = {"loss": metrics["loss"], "wait_s": wait_s, "stop": float(stop), "now": now}
        own |= {"rejected": float(len(batch.rejected))} | effort_of(batch, now)
        # Of fine-tuning, each rank's part of it.
        own |= {name: metrics[name] for name in ("accuracy",) if name in metrics}
        sums = dict(zip(own, sum_over_ranks(list(own.values()), self._device), strict=True))
        if sums["rejected"]:
            rows = [row for part in collect_objects(batch.rejected) for row in part]
            self._rejected.update(f"{row.source}/{row.reason}" for row in rows)
            if self._is_first:
                for row in rows:
                    self._reject_rows.add(asdict(row))
        if self._config.data.record_keys:
            place = {"rank": self._rank, "num_ranks": self._num_ranks}
            self._keys.add({"step": self.state.step - 1, **place, "keys": batch.keys})
        self._check_loss(sums["loss"], metrics["gradient_norm"])
        self._check_rejects()
        return Totals(
            loss=sums["loss"],
            wait_s=sums["wait_s"] / self._num_ranks,
            wall_s=sums["now"] / self._num_ranks,
            effort={name: sums[name] for name in effort_of(batch, now)},
            node=batch.effort.node,
            rejected=dict(self._rejected),
            is_stop_wanted=sums["stop"] > 0,
            accuracy=sums.get("accuracy"),
        )

    def _checkpoint(self) -> None:
        """Save; the other ranks go on at once, rank 0 once the state is copied."""
        self._keys.flush(self.state.step)
        self._reject_rows.flush(self.state.step)
        if self._reporter is None and not self._config.scaling.shard_weights:
            return
        extra = {"rejected": dict(self._rejected), "attempt": self._job.attempt}
        # Where each rank holds a part, all of them are needed to put it together.
        snapshot = self.state.snapshot(extra=extra, whole=whole_tensor)
        if self._reporter is not None:
            self._reporter.save(snapshot, self.state.step)

    def _check_loss(self, loss: float, gradient_norm: float) -> None:
        chance = chance_of(self._job.classifier, self._config)
        self._recent_losses.append(loss)
        mean = sum(self._recent_losses) / len(self._recent_losses)
        is_full = len(self._recent_losses) == DIVERGENCE_WINDOW
        if math.isfinite(loss + gradient_norm) and not (is_full and mean > 2 * chance + 1):
            return
        good = whole_checkpoints(self._job.run)
        raise DivergedError(
            f"training diverged at step {self.state.step}: loss {loss:.4g} (chance is "
            f"{chance:.4g}), gradient norm {gradient_norm:.4g}. The last good checkpoint is "
            f"{good[-1][1].uri if good else 'none'}; lower optim.learning-rate or warm up longer"
        )

    def _check_rejects(self, *, at_end: bool = False) -> None:
        count, seen = self._rejected.total(), self.state.samples_seen
        limit = self._config.data.max_reject_ratio
        if count <= limit * (count + seen) or (seen < MIN_SAMPLES_BEFORE_ABORT and not at_end):
            return
        self._reject_rows.flush(self.state.step)
        reasons = ", ".join(f"{n} {reason}" for reason, n in self._rejected.most_common())
        raise SampleError(
            f"{count} of {count + seen} samples could not be used ({reasons}), more than "
            f"data.max_reject_ratio={limit}; they are listed in {self._job.run.uri}/rejects/"
        )


@dataclass(frozen=True)
class Totals:
    """What all ranks know of a step."""

    loss: float
    wait_s: float
    wall_s: float
    """Unix time, on average: one that all ranks agree upon."""
    effort: dict[str, float]
    """Of preparing the step's batch, as `effort_of` names it."""
    node: str
    """That prepared this rank's part."""
    rejected: dict[str, int]
    """By SOURCE/REASON, since the run began."""
    is_stop_wanted: bool
    accuracy: float | None = None
    """Of the batch, in fine-tuning."""


class PreemptionNotice:
    """Whether a node of this group is about to be taken away."""

    def __init__(self) -> None:
        self._ask_at = 0.0
        self._has_come = False

    def has_come(self, wall_s: float) -> bool:
        """True once, when the notice has come: time for a checkpoint.

        Asking is a barrier. So it is not done at every step, and by a time that all ranks share.
        """
        if self._has_come or wall_s < self._ask_at:
            return False
        self._ask_at = wall_s + PREEMPTION_POLL_S
        self._has_come = ray.train.get_preemption_info() is not None
        return self._has_come


class Reporter:
    """Rank 0's side of everything outside the ranks: MLflow, the driver, checkpoints."""

    def __init__(self, job: RankJob, gauges: Gauges, num_ranks: int) -> None:
        """Start the logging thread."""
        self._job, self._gauges, self._num_ranks = job, gauges, num_ranks
        self._sources = [open_source(source.uri).name for source in job.stream.sources]
        self._monitor = MonitorClient(job.monitor)
        self._logger = MlflowQueue(self._monitor.tracked_run(), spool=spool_path(job.run))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._commit: Future[None] | None = None
        self._window, self._all = StreamWindow(), StreamWindow()
        self._figures: StreamFigures | None = None
        self._nodes: deque[str] = deque(maxlen=RECENT_BATCHES)
        self._start_up: dict[str, float] = {}

    def first_batch_came(self, wait_s: float) -> None:
        """Note how long the first batch took: start-up, no sign of how the stream keeps up."""
        self._start_up = {"data/first_batch_s": wait_s}

    def report(
        self, step: int, metrics: dict[str, float], totals: Totals, elapsed_s: float
    ) -> bool:
        """Tell MLflow and the driver of a step; whether the driver wants to stop."""
        train = self._job.config.train
        self._nodes.append(totals.node)
        for window in (self._window, self._all):
            window.add(totals.effort, elapsed_s=elapsed_s, wait_s=totals.wait_s)
        if train.is_logged(step):
            figures = self._window.figures(train.global_batch_size)
            chance = chance_of(self._job.classifier, self._job.config)
            known = {"accuracy": totals.accuracy, "logit_scale": metrics.get("logit_scale")}
            self._logger.log(
                step,
                {
                    "train/loss": totals.loss,
                    "train/loss_at_chance": chance,
                    "train/loss_over_chance": totals.loss / chance if chance else 0.0,
                    "train/gradient_norm": metrics["gradient_norm"],
                    "train/learning_rate": metrics["learning_rate"],
                    "speed/pairs_per_s": figures.rows_per_s,
                    "data/rejected": sum(totals.rejected.values()),
                }
                | {f"train/{name}": value for name, value in known.items() if value is not None}
                | {f"rejected/{name}": count for name, count in totals.rejected.items()}
                | figures.metrics()
                | {"stream/nodes": len(set(self._nodes)), "train/num_ranks": self._num_ranks}
                | {name: value for name, value in metrics.items() if "/" in name}
                | self._gauges.utilisation(figures.rows_per_s)
                | shares_of_sources(self._job.stream.plan, self._sources, step)
                | self._start_up,
            )
            self._window, self._start_up = StreamWindow(), {}
            self._figures = self._all.figures(train.global_batch_size)
        return self._monitor.update(step, {"loss": totals.loss}, self._figures)

    def save(self, snapshot: Snapshot, step: int) -> None:
        """Write a checkpoint in the background, after the one before."""
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
        # In this order: whatever a checkpoint follows has been logged when it appears.
        self._logger.flush()
        check_owner(self._job.run, self._job.attempt)
        target = self._job.run / "checkpoints" / checkpoint_name(step)
        commit_checkpoint(snapshot.save, target)
        self._monitor.checkpoint_committed(target.uri)

    def _wait_for_commit(self) -> None:
        if self._commit is not None:
            self._commit.result()


def spool_path(run: Location) -> Path:
    """Where metrics wait for MLflow: in the run where that is on a disk, else on this machine."""
    folder = Path(run.uri) if run.is_local else Path(tempfile.gettempdir()) / f"clippo-{run.name}"
    return folder / "mlflow-spool.jsonl"


def _timed(batches: Iterator[PreparedBatch]) -> Iterator[tuple[PreparedBatch, float]]:
    """Each batch, and the seconds that this rank waited for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _set_threads(config: RunConfig, ranks_on_machine: int) -> None:
    cores = len(os.sched_getaffinity(0))
    threads = config.scaling.threads_per_rank or max(cores // ranks_on_machine, 1)
    torch.set_num_threads(threads)


def _restored_state(job: RankJob, device: torch.device) -> tuple[TrainState, Counter[str]]:
    """The state to go on from, and how many samples were rejected on the way to it."""
    config, whole = job.config, whole_checkpoints(job.run)
    renderer = open_renderer(job.stream.render, job.stream.font_uri)
    vocabulary = job.stream.vocabulary
    with ExitStack() as stack:
        init_from = None
        if config.train.init_from is not None and not whole:
            init_from = stack.enter_context(fetched(find_checkpoint(config.train.init_from)))
        state = TrainState.create(
            config.model,
            config.optim,
            seed=config.train.seed,
            device=device,
            init_from=init_from,
            font=renderer.font,
            classifier=job.classifier,
            vocabulary=None if vocabulary is None else open_vocabulary(vocabulary),
        )
        if not whole:
            return state, Counter()
        values = state.restore(stack.enter_context(fetched(whole[-1][1])))
        return state, Counter(values["rejected"])
