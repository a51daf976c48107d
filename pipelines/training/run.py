"""A training run from the outside: start it, follow it, evaluate its checkpoints, end it."""

from __future__ import annotations

import dataclasses
import getpass
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import ray
import ray.exceptions
import torch
from tqdm import tqdm

from clippo_core.config import to_json
from clippo_core.errors import ClippoError, ConfigError, StorageError
from clippo_core.images import picture_size
from pipelines.config.derived import (
    TextLengths,
    check_memory,
    derive,
    flatten,
    text_lengths,
    warnings_of,
)
from pipelines.config.resolution import RUN_FILE, ResolvedRun, validate
from pipelines.config.settings import EvaluationOptions, RunConfig
from pipelines.evaluation.tasks import EvaluationTasks
from pipelines.reporting.reports import EvaluationReport
from pipelines.reporting.stored import write_report
from pipelines.runtime.devices import gpu_memory_bytes
from pipelines.runtime.placement import ClusterWatch, Placement, await_capacity
from pipelines.runtime.progress import progress
from pipelines.runtime.ray_session import (
    RAY_LOGS,
    cluster_address,
    needed_cpus,
    ray_session,
    telling_line,
)
from pipelines.runtime.run_checkpoints import (
    remove_checkpoint,
    remove_leftovers,
    set_damaged_aside,
    whole_checkpoints,
)
from pipelines.runtime.storage import Location, take_over
from pipelines.stream.batch import prepare_batch
from pipelines.stream.stream import batch_bytes
from pipelines.tracking.mlflow_client import DataSet, TrackedRun
from pipelines.tracking.mlflow_run import PATIENCE_AT_END_S, TRACKED_FILE, RunTracker
from pipelines.tracking.run_events import RunEvents
from pipelines.tracking.run_tags import run_tags
from pipelines.training.bottleneck import PictureSides, StreamFigures, verdict
from pipelines.training.monitor import Progress, start_monitor
from pipelines.training.rank import HOPELESS, train_on_rank
from pipelines.training.reporter import spool_path
from pipelines.training.token_vocabulary import with_vocabulary
from pipelines.training.trainer import RankJob, make_trainer

_POLL_S = 0.5
#: Rows on which the driver measures how long render workers take.
_MEASURED_ROWS = 64


class StoppedError(ClippoError):
    """The run was asked to stop; a checkpoint was written first."""

    exit_code = 130


@dataclass
class RunSummary:
    """The results of a run."""

    run: Location
    checkpoint: Location
    tracked: TrackedRun
    evaluations: list[EvaluationReport] = field(default_factory=list)
    bottleneck: str = ""
    """The part of the run that held up the rest, and what to raise; "" where no step was made."""


def train(
    resolved: ResolvedRun, *, is_resumed: bool = False, tags: Mapping[str, str] | None = None
) -> RunSummary:
    """Train from the newest whole checkpoint, or from the start, to the end.

    Args:
        resolved: the run.
        is_resumed: whether the run's folder is expected to be there, or not to be.
        tags: further tags of a new run in MLflow.

    Raises:
        ConfigError: if a new run's folder is there already, or the machines do not suffice.
        SampleError: if the data cannot be used.
        StorageError: if the cluster, the storage or MLflow fails.
        DivergedError: if the loss is no number any more.
        StoppedError: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    if not is_resumed:
        check_start(resolved)
    for line in set_damaged_aside(resolved.run):
        tqdm.write(line)
    validate(resolved)
    resolved = with_vocabulary(resolved)
    row_s, lengths = _seconds_per_row(resolved), text_lengths(resolved)
    check_memory(resolved.config, lengths)
    for line in [*said_of_groups(resolved), *warnings_of(derive(resolved))]:
        tqdm.write(line)
    cpus = needed_cpus(resolved.config)
    with ray_session(cpus=cpus, may_wait=True, advice=way_on(resolved.run)):
        watch = _await_nodes(resolved)
        device_bytes = _device_bytes(resolved.config, watch.placement)
        check_memory(resolved.config, lengths, device_bytes)
        driver = RunDriver(resolved, watch, row_s=row_s, lengths=lengths, device_bytes=device_bytes)
        return driver.run(lambda: _open_tracker(resolved, is_resumed=is_resumed, tags=tags or {}))


def way_on(run: Location) -> str:
    """Return the end of a message about a run that has not come to its end."""
    return f"go on with\n  python -m pipelines resume {run.uri}"


def check_start(resolved: ResolvedRun) -> None:
    """Find out, before Ray or MLflow are begun with, what would end a new run at once.

    Raises:
        ConfigError: if its folder is a run already, or it needs a GPU that this machine lacks.
    """
    if (resolved.run / RUN_FILE).exists():
        raise ConfigError(
            f"{resolved.run.uri} is a run already; go on with it by\n"
            f"  python -m pipelines resume {resolved.run.uri}\nor name another with --storage.run"
        )
    is_alone = not ray.is_initialized() and cluster_address() is None
    if resolved.config.scaling.use_gpu and is_alone and not torch.cuda.is_available():
        raise ConfigError(
            "scaling.use_gpu asks for a GPU, and torch finds none on this machine; set "
            "--scaling.no-use-gpu, or RAY_ADDRESS to a cluster that has some"
        )


def said_of_groups(resolved: ResolvedRun) -> list[str]:
    """Return a line for each set without classes whose equal captions are positives."""
    if resolved.config.train.positives != "equal" or resolved.classifier is not None:
        return []
    return [
        f"{source.name} has no classes: pairs whose captions look alike are positives of each other"
        for source in resolved.sources
        if not source.manifest.class_names
    ]


def _seconds_per_row(resolved: ResolvedRun) -> float:
    """Measure what a render worker takes to prepare a row, on some rows of the first batch."""
    # Another font costs the same; the run's own copy of it is not written yet.
    spec = resolved.stream
    render = dataclasses.replace(spec.render, font=None, font_sha256=None)
    spec = dataclasses.replace(spec, render=render, font_uri=None)
    planned = spec.plan.batch(0)[:_MEASURED_ROWS]
    started = time.perf_counter()
    prepare_batch(spec, planned, step=0)
    return (time.perf_counter() - started) / len(planned)


def picture_sides(resolved: ResolvedRun) -> PictureSides:
    """Look at the sizes of some pictures of the first batch, by their headers."""
    sides: list[int] = []
    planned = resolved.stream.plan.batch(0)[:_MEASURED_ROWS]
    for number, source in enumerate(resolved.sources):
        if source.manifest.kind.startswith("image"):
            samples = source.read(planned.row[planned.source == number])
            sizes = (picture_size(sample.image) for sample in samples)
            sides += [max(size) for size in sizes if size is not None]
    typical = float(np.median(sides)) if sides else 0.0
    return PictureSides(typical, resolved.config.model.render.image_size_px)


def _device_bytes(config: RunConfig, placement: Placement) -> float | None:
    """Ask the cluster for the memory of a rank's GPU; None where ranks are on CPUs.

    Raises:
        ConfigError: if torch cannot use the GPU.
    """
    if not config.scaling.use_gpu:
        return None
    if config.scaling.device_bytes is not None:
        return config.scaling.device_bytes
    task = ray.remote(gpu_memory_bytes).options(
        num_cpus=0, num_gpus=1, label_selector=dict(placement.trainer or {}), max_retries=0
    )
    try:
        found: int = ray.get(task.remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return found


def _await_nodes(resolved: ResolvedRun) -> ClusterWatch:
    config = resolved.config
    of_step = batch_bytes(resolved.stream, config.scaling.num_ranks)
    block_bytes = (config.data.steps_per_task or 1) * of_step
    placement = await_capacity(config, block_bytes=block_bytes, say=tqdm.write)
    return ClusterWatch(config.scaling, placement)


class RunDriver:
    """Follows one attempt at a run."""

    _record: RunEvents

    def __init__(
        self,
        resolved: ResolvedRun,
        watch: ClusterWatch,
        *,
        row_s: float,
        lengths: TextLengths,
        device_bytes: float | None,
    ) -> None:
        """Start the monitor, and nothing else yet.

        Args:
            resolved: the run.
            watch: counts what its cluster has for it.
            row_s: seconds that a render worker takes to prepare a row.
            lengths: lengths of the run's texts.
            device_bytes: memory of each rank's GPU; None: CPUs.
        """
        self._watch, self._bottleneck = watch, ""
        self._resolved = resolved
        self._config, self._run = resolved.config, resolved.run
        self._monitor = start_monitor()
        evaluation = self._config.evaluation
        self._evaluations = EvaluationTasks(
            resolved.benchmarks,
            EvaluationOptions.of(evaluation),
            cpus=evaluation.cpus,
            gpus=evaluation.gpus,
            timeout_s=evaluation.timeout_s,
        )
        self._reports: list[EvaluationReport] = []
        self._num_followed = 0
        self._judged: StreamFigures | None = None
        self._pictures = picture_sides(resolved)
        self._job = RankJob(
            config=self._config,
            run=self._run,
            attempt=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            stream=resolved.stream,
            row_s=row_s,
            max_block_bytes=watch.capacity.max_block_bytes(self._config.scaling),
            text_lengths=lengths,
            device_bytes=device_bytes,
            monitor=self._monitor,
            classifier=resolved.classifier,
        )

    def run(self, open_tracker: Callable[[], RunTracker]) -> RunSummary:
        """Train, and wait for the evaluations; the MLflow run gets its true end.

        Args:
            open_tracker: opens the MLflow run, or opens it again.
        """
        _take_over(self._resolved, self._job.attempt)
        # MLflow takes seconds to import, and longer to make its database; ranks start meanwhile.
        training = _Result(make_trainer(self._job, self._watch.placement, train_on_rank).fit)
        tracked = self._open(open_tracker)
        status, state = "FAILED", "failed"
        try:
            outcome = self._fit(training)
            self._record.training_ended(spool_path(self._run))
            if outcome["state"] == "completed":
                self._wait_for_evaluations()
            summary = self._conclude(outcome, tracked)
            status, state = "FINISHED", "completed"
            return summary
        except (StoppedError, KeyboardInterrupt):
            status, state = "KILLED", "interrupted"
            raise
        except BaseException as error:
            state = f"{type(error).__name__}: {error}"
            raise
        finally:
            _tell_unsent(self._record.finish(status, state), self._run)

    def _open(self, open_tracker: Callable[[], RunTracker]) -> TrackedRun:
        """Open the MLflow run, which rank 0 waits for; from here on the folder is a run."""
        announced: TrackedRun | str = "the driver did not open the MLflow run"
        try:
            tracker = open_tracker()
            self._record = RunEvents(self._resolved, tracker)
            (self._run / RUN_FILE).write_bytes(to_json(self._config).encode())
            (self._run / TRACKED_FILE).write_json(dataclasses.asdict(tracker.run))
            announced = tracker.run
            return announced
        finally:
            self._monitor.announce.remote(announced)

    def _fit(self, training: _Result) -> dict[str, Any]:
        """Follow the trainer from here, where signals arrive."""
        self._record.note("clippo.placement", str(self._watch.placement))
        self._start_missing_evaluations()
        bar = progress(
            "waiting for the ranks and their first batch",
            unit="step",
            total=self._config.train.steps,
        )
        with bar, stop_on_signals(self._request_stop):
            while not training.wait(_POLL_S):
                self._follow(bar)
            self._follow(bar)
        return _outcome_of(training, way_on(self._run))

    def _follow(self, bar: Any) -> None:
        """Take in what rank 0 reported and which evaluations ended, and act on it."""
        for line in self._watch.poll():
            tqdm.write(line)
            self._record.description.events.append(f"{time.strftime('%H:%M:%S')} {line}")
            self._record.describe("running")
        said = cast("Progress", ray.get(self._monitor.progress.remote()))
        if said.stream is not None and said.stream != self._judged:
            self._judge(said.stream)
        if said.step > bar.n:
            bar.set_description("training", refresh=False)
            bar.set_postfix(self._postfix(said), refresh=False)
            bar.update(said.step - bar.n)
            self._record.description.step = said.step
            self._record.description.num_rejected = round(said.metrics["rejected"])
        new = said.checkpoints[self._num_followed :]
        self._num_followed += len(new)
        for uri in new:
            self._evaluations.start(uri)
            self._record.checkpoint_committed(uri)
        ended = self._evaluations.finished()
        self._collect(ended)
        self._record.follow(said.step)
        if new or ended:
            self._prune()

    def _postfix(self, said: Progress) -> dict[str, str]:
        """Return what the bar shows beside the steps."""
        shown = {"loss": f"{said.metrics['loss']:.3f}"}
        if said.stream is not None:
            shown["pairs/s"] = f"{said.stream.rows_per_s:.0f}"
            shown["waiting"] = f"{said.stream.wait_ratio:.0%}"
        if (newest := self._record.description.newest_result) is not None:
            shown[newest.name.partition("/")[0]] = newest.outcome.partition(" (")[0]
        return shown

    def _judge(self, figures: StreamFigures) -> None:
        """Say what limits the run, with the figures that say so."""
        self._judged = figures
        self._bottleneck = verdict(
            figures,
            self._config.scaling,
            self._watch.capacity,
            pictures=self._pictures,
        )
        self._record.note("clippo.bottleneck", self._bottleneck)
        self._record.description.bottleneck = self._bottleneck

    def _start_missing_evaluations(self) -> None:
        """Evaluate the checkpoints that the attempt before left without results."""
        for _, place in whole_checkpoints(self._run):
            if not (self._run / "evaluations" / place.name).names():
                self._evaluations.start(place.uri)

    def _request_stop(self) -> None:
        self._monitor.request_stop.remote()

    def _collect(self, reports: list[EvaluationReport]) -> None:
        for report in reports:
            self._reports.append(report)
            folder = Location.of(report.checkpoint).name
            write_report(report, self._run / "evaluations" / folder)
            self._record.evaluation_ended(report)
            if report.status != "ok":
                tqdm.write(
                    f"evaluation {report.name} of {folder}: {report.status}: {report.message}"
                )

    def _prune(self) -> None:
        """Remove all but the newest checkpoints, and those under evaluation."""
        whole = whole_checkpoints(self._run)
        in_use = self._evaluations.checkpoints_in_use | self._record.checkpoints_in_use
        for _, place in whole[: -self._config.storage.keep_checkpoints]:
            if place.uri not in in_use:
                remove_checkpoint(place)
                self._record.checkpoint_removed(place.uri)

    def _wait_for_evaluations(self) -> None:
        left = self._evaluations.num_running
        with progress("evaluating", unit="task", total=left) as bar:
            while self._evaluations.num_running:
                ended = self._evaluations.finished(wait_s=_POLL_S)
                self._collect(ended)
                bar.update(len(ended))
        while self._record.num_running:
            self._record.follow(self._config.train.steps)
            time.sleep(_POLL_S / 10)
        # A checkpoint that is being copied to MLflow cannot be removed; nobody would do so later.
        deadline = time.monotonic() + PATIENCE_AT_END_S
        while self._record.checkpoints_in_use and time.monotonic() < deadline:
            time.sleep(_POLL_S / 10)
        self._prune()

    def _conclude(self, outcome: dict[str, Any], tracked: TrackedRun) -> RunSummary:
        state = outcome["state"]
        if state == "failed":
            raise HOPELESS[outcome["error"]](outcome["message"])
        checkpoint = whole_checkpoints(self._run)[-1][1]
        if state == "interrupted":
            raise StoppedError(
                f"stopped as asked; {checkpoint.uri} is written; {way_on(self._run)}"
            )
        return RunSummary(self._run, checkpoint, tracked, self._reports, self._bottleneck)


class _Result:
    """A call in a thread of its own, and how it ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(call,), daemon=True)
        self._thread.start()

    def _work(self, call: Callable[[], Any]) -> None:
        try:
            self.value = call()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error

    def wait(self, timeout_s: float | None) -> bool:
        """Tell whether the call has ended, after at most `timeout_s` seconds; None: wait for it."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def _outcome_of(thread: _Result, advice: str) -> dict[str, Any]:
    if thread.error is None:
        return thread.value.return_value
    # Ray Train's controller wraps an error that a rank raises before it trains.
    failure = getattr(thread.error, "controller_failure", thread.error)
    original = getattr(failure, "cause", failure)
    if isinstance(original, ClippoError):
        raise original
    raise StorageError(
        f"the training workers failed: {telling_line(thread.error)}; Ray's logs: {RAY_LOGS}\n"
        f"{advice}"
    ) from thread.error


def _open_tracker(
    resolved: ResolvedRun, *, is_resumed: bool, tags: Mapping[str, str]
) -> RunTracker:
    config, run = resolved.config, resolved.run
    if is_resumed and (known_run := _tracked_run(run)) is not None:
        tracker = RunTracker(known_run)
        tracker.set_running()
        return tracker
    assert config.tracking.uri is not None
    known = {
        "clippo.run": run.uri,
        "clippo.preset": config.preset,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"pipelines {_command_of(config)}",
        "mlflow.source.type": "LOCAL",
        "clippo.font_sha256": resolved.renderer.font.sha256,
        **run_tags(),
        **tags,
    }
    tracker = RunTracker.open(
        config.tracking.uri,
        experiment=config.tracking.experiment,
        name=run.name,
        artifacts=run.parent / "mlartifacts",
        tags=known,
    )
    tracker.log_params(flatten(config))
    tracker.log_params({f"derived.{name}": value for name, value in derive(resolved).items()})
    read = [DataSet(s.name, s.manifest.digest, s.folder.uri) for s in resolved.sources]
    tracker.log_inputs(read, context="training")
    return tracker


def _tracked_run(run: Location) -> TrackedRun | None:
    """Return the MLflow run that a run's folder names; None, after saying so, if none is named."""
    try:
        return TrackedRun(**(run / TRACKED_FILE).read_json())
    except (FileNotFoundError, StorageError, TypeError) as error:
        tqdm.write(
            f"{(run / TRACKED_FILE).uri} cannot be read ({error}): a new MLflow run is begun"
        )
        return None


def _command_of(config: RunConfig) -> str:
    task = config.finetune.task
    return f"train {config.preset}" if task is None else f"finetune {task}"


def _tell_unsent(unsent: list[str], run: Location) -> None:
    """Say what MLflow does not know of a run that has ended."""
    if spool_path(run).is_file():
        unsent = [*unsent, f"python -m pipelines resume {run.uri} sends the steps"]
    if unsent:
        lines = "\n  ".join(unsent)
        tqdm.write(f"MLflow did not take, and does not show:\n  {lines}", file=sys.stderr)


def _take_over(resolved: ResolvedRun, attempt: str) -> None:
    run = resolved.run
    take_over(run, attempt)
    if (font := resolved.config.model.render.font) is not None:
        Location.of(font).write_bytes(resolved.renderer.font.to_bytes())
    remove_leftovers(run)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """While this lasts, the first Ctrl-C or SIGTERM calls `stop`; the second interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        tqdm.write("stopping after a checkpoint; once more to stop at once", file=sys.stderr)
        stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handle) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
