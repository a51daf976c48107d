"""The training loop of a rank: take a batch, make a step, and now and then look, log and save."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from clippo_core.errors import (
    CheckpointError,
    ClippoError,
    ConfigError,
    DivergedError,
    RenderError,
    SampleError,
)
from clippo_core.modeling import make_model
from clippo_core.training.fine_tuning import LabelledBatch, fine_tuning_step
from clippo_core.training.precision import common_precision, find_precision
from clippo_core.training.state import TrainState
from clippo_core.training.step import StepMemory, StepOptions, train_step
from pipelines.config.derived import chance_of, micro_batch_size
from pipelines.datasets.sources import open_source
from pipelines.runtime.run_checkpoints import fetched, find_checkpoint, whole_checkpoints
from pipelines.runtime.storage import JsonLines, SupersededError, check_owner
from pipelines.stream.batch import PreparedBatch, open_renderer, open_vocabulary
from pipelines.stream.stream import DATASET, StreamRange, iterate_batches
from pipelines.training.exchange import LOOK_EVERY_S, StepWindow, Totals, next_look
from pipelines.training.feeding import DeviceFeed, FedBatch
from pipelines.training.gauges import Gauges
from pipelines.training.parallel import (
    collect_objects,
    divide_weights,
    divided_like,
    this_shard,
    whole_tensor,
)
from pipelines.training.reporter import Reporter
from pipelines.training.trainer import RankJob

#: Below this many samples a few bad ones are no verdict on the data.
MIN_SAMPLES_BEFORE_ABORT = 1000
#: Steps over which the mean loss is taken when judging whether training diverges.
DIVERGENCE_WINDOW = 50


@dataclass(frozen=True)
class Outcome:
    """The end of a rank's work: complete, stopped, or with an error that a restart meets again."""

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
    """Train from the newest whole checkpoint to the end, or as far as it goes, for Ray Train.

    Hopeless errors are returned, not raised: Ray would retry what is raised.
    """
    job: RankJob = settings["job"]
    try:
        outcome = _train(job)
    except Exception as error:
        hopeless = hopeless_cause(error)
        if hopeless is None:
            raise
        outcome = Outcome("failed", type(hopeless).__name__, str(hopeless))
    return asdict(outcome)


def hopeless_cause(error: BaseException) -> BaseException | None:
    """Return the hopeless error among the causes of `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray wraps what tasks raise, and keeps the original in `cause`.
        original = getattr(cause, "cause", cause)
        if type(original).__name__ in HOPELESS:
            return original
        cause = cause.__cause__
    return None


def _train(job: RankJob) -> Outcome:
    """Bring state, stream and reporter together from what Ray Train knows of this rank."""
    check_owner(job.run, job.attempt)
    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(cores // context.get_local_world_size(), 1))
    state, rejected = _restored_state(job, ray.train.torch.get_device())
    num_ranks = context.get_world_size()
    steps = StreamRange(state.step, job.config.train.steps, num_ranks)
    shard = ray.train.get_dataset_shard(DATASET)
    assert shard is not None
    rank = Rank(job, state, rejected, index=context.get_world_rank(), num_ranks=num_ranks)
    try:
        return rank.run(iterate_batches(shard, job.stream, steps))
    finally:
        rank.close()


class Rank:
    """One training process: its state, its part of the stream, and what it reports."""

    def __init__(
        self,
        job: RankJob,
        state: TrainState,
        rejected: dict[str, int],
        *,
        index: int,
        num_ranks: int,
    ) -> None:
        """Prepare for the steps after `state.step`.

        Args:
            job: the attempt.
            state: the state to go on from, whole, on this rank's device.
            rejected: samples that were rejected on the way to it, by SOURCE/REASON.
            index: number of this rank.
            num_ranks: how many ranks there are.
        """
        self._job, self._config, self.state = job, job.config, state
        device = state.model.device
        own = find_precision(job.config.train.precision, device)
        precision = common_precision(collect_objects(own))
        memory = self._step_memory(num_ranks)
        forward = self._exchanging_model()
        self._gauges = Gauges(job.config, device, precision, num_ranks=num_ranks)
        shard = self._gauges.watch(this_shard(forward))
        self._options = StepOptions(
            precision=precision, forward=forward, shard=shard, memory=memory
        )
        names = [open_source(source.uri).name for source in job.stream.sources]
        self._window = StepWindow(names, rejected, num_ranks)
        part = f"{job.attempt}-rank{index}"
        self._keys = JsonLines(job.run / "samples", part)
        self._reject_rows = JsonLines(job.run / "rejects", part)
        self._place = {"rank": index, "num_ranks": num_ranks}
        self._recent_losses: deque[float] = deque(maxlen=DIVERGENCE_WINDOW)
        self._is_preempted, self._ask_at = False, 0.0
        self._reporter = Reporter(job, self._gauges, names) if index == 0 else None

    def run(self, batches: Iterator[PreparedBatch]) -> Outcome:
        """Make steps until the run is complete, or the driver wants it to stop."""
        train, first = self._config.train, self.state.step
        look_at = first + 1
        feed = DeviceFeed(batches, self.state.model, train)
        for batch in feed:
            if self.state.step == first:
                self._window.begin()
            self._window.add(batch, self.make_step(batch))
            self._note(batch.prepared)
            step = self.state.step
            is_saved = step == train.steps or step % train.checkpoint_every == 0
            if step < look_at and not is_saved:
                continue
            totals = self._look(batch, feed)
            look_at = next_look(step, train, totals)
            is_preempted = self._is_preemption_new(totals.wall_s)
            if is_saved or totals.is_stop_wanted or is_preempted:
                self._checkpoint(totals)
            if totals.is_stop_wanted:
                return Outcome("interrupted")
        return Outcome("completed")

    def make_step(self, batch: FedBatch) -> dict[str, Tensor]:
        """Update the state by a batch; the metrics stay on the device."""
        optim, total_steps = self._config.optim, self._config.train.steps
        state, samples, options = self.state, batch.on_device, self._options
        if isinstance(samples, LabelledBatch):
            return fine_tuning_step(state, samples, optim, total_steps=total_steps, options=options)
        return train_step(state, samples, optim, total_steps=total_steps, options=options)

    def close(self) -> None:
        """Wait for the checkpoint and the metrics that are under way."""
        if self._reporter is not None:
            self._reporter.close()

    def _step_memory(self, num_ranks: int) -> StepMemory:
        micro_batch = micro_batch_size(
            self._config.with_ranks(num_ranks),
            self._job.text_lengths,
            device_bytes=self._job.device_bytes,
        )
        return StepMemory(micro_batch_size=micro_batch, logit_rows=self._config.train.logit_rows)

    def _exchanging_model(self) -> nn.Module:
        """Return the model as a step calls it: gradients are averaged over the ranks."""
        train = self._config.train
        for tower in self.state.model.towers:
            tower.recomputes_activations = train.activation_checkpointing
            if train.compile:
                tower.compile_blocks()
        if self._config.scaling.shard_weights:
            self.state.divide(self._config.optim, divide_weights, divided_like)
            return self.state.model
        return ray.train.torch.prepare_model(self.state.model)

    def _note(self, batch: PreparedBatch) -> None:
        """Write down a batch's rejected samples, its keys if asked for, and its node."""
        for row in batch.rejected:
            self._reject_rows.add(asdict(row))
        if self._config.data.record_keys:
            self._keys.add({"step": batch.step, **self._place, "keys": batch.keys})
        if self._reporter is not None:
            self._reporter.step_made(batch.effort.node)

    def _look(self, batch: FedBatch, feed: DeviceFeed) -> Totals:
        """Exchange the figures of the steps since the last look; judge, report and log them."""
        step, reporter = self.state.step, self._reporter
        is_stop_wanted = reporter is not None and reporter.is_stop_wanted
        device = self.state.model.device
        totals = self._window.exchange(feed, device, is_stop_wanted=is_stop_wanted)
        self._check_losses(totals)
        self._check_rejects(totals, at_end=step == self._config.train.steps)
        figures = {}
        if self._config.train.is_logged(step):
            figures = self._gauges.read(batch, self._options.shard)
        if reporter is not None:
            reporter.report(step, totals, figures, first_batch_s=feed.first_batch_s)
        return totals

    def _is_preemption_new(self, wall_s: float) -> bool:
        """Tell once, on all ranks, that a node of this group is about to be taken away.

        Asking is a barrier of Ray's. So ranks ask where they meet in any case, and at most every
        two seconds, since notices come 30 s or more before.
        """
        if self._is_preempted or wall_s < self._ask_at:
            return False
        self._ask_at = wall_s + LOOK_EVERY_S
        self._is_preempted = ray.train.get_preemption_info() is not None
        return self._is_preempted

    def _checkpoint(self, totals: Totals) -> None:
        """Save; the other ranks go on at once, rank 0 once the state is copied."""
        self._keys.flush(self.state.step)
        self._reject_rows.flush(self.state.step)
        if self._reporter is None and not self._config.scaling.shard_weights:
            return
        extra = {"rejected": dict(totals.rejected), "attempt": self._job.attempt}
        # Where each rank holds a part, all of them are needed to put it together.
        snapshot = self.state.snapshot(extra=extra, whole=whole_tensor)
        if self._reporter is not None:
            self._reporter.save(snapshot, self.state.step)

    def _check_losses(self, totals: Totals) -> None:
        chance = chance_of(self._job.classifier, self._config)
        losses, norms = totals.metrics["loss"], totals.metrics["gradient_norm"]
        first = self.state.step - totals.num_steps + 1
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            self._recent_losses.append(float(loss))
            mean = sum(self._recent_losses) / len(self._recent_losses)
            is_full = len(self._recent_losses) == DIVERGENCE_WINDOW
            if math.isfinite(loss + norm) and not (is_full and mean > 2 * chance + 1):
                continue
            good = whole_checkpoints(self._job.run)
            raise DivergedError(
                f"training diverged at step {step}: loss {loss:.4g} (chance is {chance:.4g}), "
                f"gradient norm {norm:.4g}. The last good checkpoint is "
                f"{good[-1][1].uri if good else 'none'}; lower optim.learning-rate or warm up "
                "longer"
            )

    def _check_rejects(self, totals: Totals, *, at_end: bool) -> None:
        count, seen = sum(totals.rejected.values()), self.state.samples_seen
        limit = self._config.data.max_reject_ratio
        if count <= limit * (count + seen) or (seen < MIN_SAMPLES_BEFORE_ABORT and not at_end):
            return
        self._reject_rows.flush(self.state.step)
        by_count = sorted(totals.rejected.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{n} {reason}" for reason, n in by_count)
        raise SampleError(
            f"{count} of {count + seen} samples could not be used ({reasons}), more than "
            f"data.max_reject_ratio={limit}; they are listed in {self._job.run.uri}/rejects/"
        )


def _restored_state(job: RankJob, device: torch.device) -> tuple[TrainState, dict[str, int]]:
    """Return the state to go on from, and the samples that were rejected on the way to it."""
    config, whole = job.config, whole_checkpoints(job.run)
    renderer = open_renderer(job.stream.render, job.stream.font_uri)
    vocabulary = job.stream.vocabulary
    model = make_model(
        config.model,
        seed=config.train.seed,
        font=renderer.font,
        classifier=job.classifier,
        vocabulary=None if vocabulary is None else open_vocabulary(vocabulary),
    )
    with ExitStack() as stack:
        init_from = None
        if config.train.init_from is not None and not whole:
            init_from = stack.enter_context(fetched(find_checkpoint(config.train.init_from)))
        state = TrainState.create(model, config.optim, device=device, init_from=init_from)
        if not whole:
            return state, {}
        values = state.restore(stack.enter_context(fetched(whole[-1][1])))
        return state, dict(values["rejected"])
