"""The metrics of steps: each is logged once, over all restarts, whatever MLflow does."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clippo_core.errors import StorageError
from pipelines.tracking.mlflow_run import TrackedRun, connect, metric_points

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

#: The metric that every logged step has; its last step says how far a run was logged.
STEP_METRIC = "train/loss"
_METRICS_PER_CALL = 1000
_SEND_EVERY_S = 1.0
_RETRY_EVERY_S = 5.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepPoint:
    """The metrics of one step."""

    step: int
    timestamp_ms: int
    metrics: dict[str, float]

    def to_mlflow(self) -> list[Metric]:
        """As MLflow's client takes them."""
        return metric_points(self.metrics, step=self.step, timestamp_ms=self.timestamp_ms)


class StepLogger:
    """Rank 0's side: each step is logged once, over all restarts, whatever MLflow does.

    A thread sends what has come in; what cannot be sent stays in the spool file until it can.
    Steps up to the last one that MLflow has are not sent again.
    """

    def __init__(self, run: TrackedRun, *, spool: Path) -> None:
        """Start the thread; the spool's leftovers go first."""
        self._run, self._spool = run, spool
        self._unsent = _read_spool(spool)
        self._client: MlflowClient | None = None
        self._last_logged: int | None = None
        # Two stages, so that `log` never waits for a slow server: only `_send` takes the lock.
        self._incoming: deque[StepPoint] = deque()
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._is_closed = False
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics; returns at once."""
        self._incoming.append(StepPoint(step, int(time.time() * 1000), dict(metrics)))

    def flush(self) -> None:
        """Make sure that what was logged is in MLflow, or at least in the spool."""
        with self._lock:
            self._send()

    def close(self) -> None:
        """Try once more to send everything, and end the thread."""
        self._is_closed = True
        self._wake.set()
        self._thread.join()
        self._retry_at = 0.0
        self.flush()

    def _work(self) -> None:
        # This takes seconds, which a rank has while it waits for its first batch.
        with self._lock:
            self._try(self._connect)
        while not self._is_closed:
            self._wake.wait(_SEND_EVERY_S)
            self.flush()

    def _send(self) -> None:
        while self._incoming:
            self._unsent.append(self._incoming.popleft())
        if not self._unsent:
            return
        self._try(self._send_unsent)
        _write_spool(self._spool, self._unsent)

    def _try(self, call: Callable[[], object]) -> None:
        """Any failure of tracking is survived: the points stay, and are tried again."""
        if time.monotonic() < self._retry_at:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - see above
            _logger.warning(
                "MLflow at %s: %s; metrics wait in %s", self._run.uri, error, self._spool
            )
            self._retry_at = time.monotonic() + _RETRY_EVERY_S

    def _connect(self) -> tuple[MlflowClient, int]:
        """The client, and the last step that MLflow has."""
        if self._client is None:
            self._client = connect(self._run.uri)
        if self._last_logged is None:
            history = self._client.get_metric_history(self._run.run_id, STEP_METRIC)
            self._last_logged = max((metric.step for metric in history), default=-1)
        return self._client, self._last_logged

    def _send_unsent(self) -> None:
        client, last_logged = self._connect()
        while self._unsent:
            new, used, last = [], 0, last_logged
            for point in self._unsent:
                # A whole step in one call, so that its last metric speaks for all of them.
                points = point.to_mlflow() if point.step > last else []
                if len(new) + len(points) > _METRICS_PER_CALL:
                    break
                new, used, last = new + points, used + 1, max(last, point.step)
            if new:
                client.log_batch(self._run.run_id, metrics=new)
            self._last_logged = last_logged = last
            del self._unsent[:used]


def send_spool(run: TrackedRun, spool: Path) -> None:
    """Send what a process that has ended left in its spool.

    Raises:
        StorageError: if some of it is left even now.
    """
    StepLogger(run, spool=spool).close()
    if spool.is_file():
        raise StorageError(f"the steps in {spool} could not be sent to {run.uri}")


def _read_spool(spool: Path) -> list[StepPoint]:
    if not spool.is_file():
        return []
    return [StepPoint(**json.loads(line)) for line in spool.read_text().splitlines() if line]


def _write_spool(spool: Path, points: Sequence[StepPoint]) -> None:
    """Replace the spool's content; no file where there is nothing to keep."""
    if not points:
        spool.unlink(missing_ok=True)
        return
    spool.parent.mkdir(parents=True, exist_ok=True)
    aside = spool.with_suffix(".tmp")
    aside.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points))
    aside.replace(spool)
