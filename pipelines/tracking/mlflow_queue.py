"""`MlflowQueue`: calls and metrics for MLflow, sent in order by a thread, so that nobody waits.

Each writer has one: the driver for all but the metrics of steps, rank 0 for those, and every
machine for its load.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clippo_core.errors import StorageError
from pipelines.tracking.mlflow_client import TrackedRun, connect, metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

#: The metric that every logged step has; its last step says how far a run was logged.
STEP_METRIC = "train/loss"
#: Seconds between two attempts while the server is away.
RETRY_EVERY_S = 5.0
#: Attempts at a call that fails though the server answers.
MAX_ATTEMPTS = 3
#: Seconds for which metrics gather, so that one call sends those of many short steps.
_GATHER_S = 1.0
#: Number of waiting entries above which they are sent at once.
_MANY = 100
#: Most metrics in one request, which is MLflow's own limit.
_METRICS_PER_CALL = 1000
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    what: str
    make: Callable[[], Any]
    num_entries: int = 1
    """Entries of the queue that the call sends."""
    may_be_given_up: bool = True


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one step; as JSON, a line of a spool file."""

    step: int
    timestamp_ms: int
    metrics: dict[str, float]

    @property
    def what(self) -> str:
        """Return the words for these metrics in messages."""
        return f"metrics of step {self.step}"

    def to_mlflow(self) -> list[Metric]:
        """Return a point for each metric."""
        from mlflow.entities import Metric

        return [
            Metric(metric_name(name), value, self.timestamp_ms, self.step)
            for name, value in self.metrics.items()
        ]


class MlflowQueue:
    """Sends calls and metrics of a run in the order in which they were added.

    Adding never waits. While the server is away, everything waits for it to come back. A call that
    fails though the server answers is tried again, and then given up.

    With a spool file, metrics outlive the process: those that cannot be sent are kept there, never
    given up, and sent first by the next process. Then each step is logged once over all restarts,
    since steps up to the last one that MLflow has are not sent again. Steps may have gaps.
    """

    def __init__(
        self, run: TrackedRun, *, spool: Path | None = None, is_quiet: bool = False
    ) -> None:
        """Start the thread.

        Args:
            run: the MLflow run to send to.
            spool: file for metrics that wait; what an earlier process left in it goes first.
            is_quiet: whether another process warns that the server is away, so that this need not.
        """
        self._run, self._spool, self._is_quiet = run, spool, is_quiet
        self._waiting: deque[_Call | StepMetrics] = deque(_read_spool(spool))
        self._given_up: list[str] = []
        self._last_logged: int | None = None
        # Held for moments only, never while the server or the disk is waited for.
        self._changed = threading.Condition()
        self._spooling = threading.Lock()
        self._is_away = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @functools.cached_property
    def client(self) -> MlflowClient:
        """Return MLflow's client, made at the first call, since its import takes seconds."""
        return connect(self._run.uri)

    @property
    def num_waiting(self) -> int:
        """Return how many calls and steps are not in MLflow yet."""
        return len(self._waiting)

    def add(self, what: str, call: Callable[[], Any]) -> None:
        """Add a call to be made; return at once.

        Args:
            what: the words for the call in messages.
            call: may be made again after it failed.
        """
        self._append(_Call(what, call))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step, to be logged in one call; return at once."""
        self._append(StepMetrics(step, int(time.time() * 1000), dict(metrics)))

    def _append(self, entry: _Call | StepMetrics) -> None:
        with self._changed:
            self._waiting.append(entry)
            self._changed.notify_all()

    def flush(self) -> None:
        """Return once all that was added is in MLflow or, while that is away, in the spool."""
        reached = threading.Event()
        self.add("", reached.set)
        with self._changed:
            self._changed.wait_for(
                lambda: reached.is_set() or self._is_away or self._deadline is not None
            )
        self._write_spool()

    def close(self, *, patience_s: float = 0.0) -> list[str]:
        """Send what is left, and end the thread.

        Args:
            patience_s: how long to try again while the server is away; by default there is one
                attempt.

        Returns:
            The names of calls and metrics that were not sent; metrics are in the spool, if any.
        """
        with self._changed:
            self._deadline = time.monotonic() + patience_s
            self._changed.notify_all()
        self._thread.join()
        self._write_spool()
        return self._given_up + [entry.what for entry in self._waiting if entry.what]

    def _work(self) -> None:
        if self._spool is not None:
            # Imported now: it takes seconds, which a rank has while it waits for its first batch.
            with suppress(Exception):
                self._last_logged = self._last_step_in_mlflow()
        while (call := self._next_call()) is not None and self._deliver(call):
            with self._changed:
                for _ in range(call.num_entries):
                    self._waiting.popleft()
                self._is_away = False
                self._changed.notify_all()

    def _next_call(self) -> _Call | None:
        """Wait for the next call, or make one of the metrics of some steps; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
            first = self._waiting[0] if self._waiting else None
            if not isinstance(first, StepMetrics):
                return first
            self._changed.wait_for(self._is_urgent, timeout=_GATHER_S)
            steps, room = [first], _METRICS_PER_CALL - len(first.metrics)
            for entry in itertools.islice(self._waiting, 1, None):
                if isinstance(entry, _Call) or len(entry.metrics) > room:
                    break
                steps.append(entry)
                room -= len(entry.metrics)
        is_one = len(steps) == 1
        what = first.what if is_one else f"metrics of steps {first.step} to {steps[-1].step}"
        send = functools.partial(self._send_steps, steps)
        return _Call(what, send, len(steps), may_be_given_up=self._spool is None)

    def _is_urgent(self) -> bool:
        """Tell whether a call waits behind the metrics, or many wait, or the queue is closing."""
        last = self._waiting[-1]
        return isinstance(last, _Call) or len(self._waiting) > _MANY or self._deadline is not None

    def _deliver(self, call: _Call) -> bool:
        """Make a call until it succeeds or is given up; False once there is no time left."""
        attempts = 0
        while (failure := _failure_of(call.make)) is not None:
            if call.may_be_given_up and _failure_of(self._probe) is None:
                attempts += 1
                if attempts == MAX_ATTEMPTS:
                    self._given_up.append(f"{call.what} ({failure})")
                    self._warn(f"{call.what}: {failure}")
                    return True
            else:
                self._note_away(call.what, failure)
            if not self._pause():
                return False
        return True

    def _probe(self) -> None:
        self.client.get_run(self._run.run_id)

    def _note_away(self, what: str, failure: Exception) -> None:
        if not self._is_away:
            self._warn(f"{what}: {failure}; training goes on, and what MLflow misses is sent later")
        # An error, such as a full disk, is raised by flushing and closing; the thread goes on.
        with suppress(Exception):
            self._write_spool()
        with self._changed:
            self._is_away = True
            self._changed.notify_all()

    def _warn(self, message: str) -> None:
        if not self._is_quiet:
            _logger.warning("MLflow at %s: %s", self._run.uri, message)

    def _pause(self) -> bool:
        """Wait before another attempt; False if the time was over when the last one failed."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, timeout=RETRY_EVERY_S)
                return True
            left_s = self._deadline - time.monotonic()
        time.sleep(min(max(left_s, 0.0), RETRY_EVERY_S, 1.0))
        return left_s > 0

    def _send_steps(self, steps: list[StepMetrics]) -> None:
        last = -1
        if self._spool is not None:
            last = self._last_step_in_mlflow() if self._last_logged is None else self._last_logged
        points: list[Metric] = []
        for step in steps:
            if self._spool is None or step.step > last:
                points += step.to_mlflow()
                last = step.step
        # Unknown until it has succeeded: a server may take metrics, and its answer be lost.
        self._last_logged = None
        # More than a call takes are those of one step; backwards, so that its STEP_METRIC, which is
        # among the first, comes last and speaks for all of them.
        for start in reversed(range(0, len(points), _METRICS_PER_CALL)):
            chunk = points[start : start + _METRICS_PER_CALL]
            self.client.log_batch(self._run.run_id, metrics=chunk)
        self._last_logged = last

    def _last_step_in_mlflow(self) -> int:
        history = self.client.get_metric_history(self._run.run_id, STEP_METRIC)
        return max((metric.step for metric in history), default=-1)

    def _write_spool(self) -> None:
        """Keep the metrics that wait in the spool; no file where there are none."""
        if self._spool is None:
            return
        with self._spooling:
            with self._changed:
                steps = [entry for entry in self._waiting if isinstance(entry, StepMetrics)]
            if not steps:
                self._spool.unlink(missing_ok=True)
                return
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            aside = self._spool.with_suffix(".tmp")
            aside.write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps))
            aside.replace(self._spool)


def _failure_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - training is worth more than its record
        return error
    return None


def _read_spool(spool: Path | None) -> list[StepMetrics]:
    if spool is None or not spool.is_file():
        return []
    return [StepMetrics(**json.loads(line)) for line in spool.read_text().splitlines() if line]


def send_spool(run: TrackedRun, spool: Path) -> None:
    """Send the metrics that a process which has ended left in its spool.

    Raises:
        StorageError: if some of them are left even now.
    """
    MlflowQueue(run, spool=spool, is_quiet=True).close()
    if spool.is_file():
        raise StorageError(f"the steps in {spool} could not be sent to {run.uri}")
