"""What goes to MLflow, and from where.

The driver opens the run, logs params and pictures, and ends it; rank 0 logs the metrics of steps.
MLflow being down or slow never holds training up: points are sent from a thread, and wait in a
spool file until they can be sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clippo_core.errors import StorageError
from pipelines.storage import Location

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL import Image

#: The metric that every logged step has; its last step says how far a run was logged.
STEP_METRIC = "train/loss"
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_PARAM_CHARS = 6000
#: MLflow would show a page for language-model applications otherwise.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_SEND_EVERY_S = 1.0
_RETRY_EVERY_S = 5.0
#: Without these, one call to a server that is down blocks for minutes.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run: where it is kept, and its id."""

    uri: str
    run_id: str
    experiment_id: str


def connect(uri: str) -> MlflowClient:
    """A client that gives up early and keeps quiet.

    MLflow is imported here: it takes seconds, and most commands do without.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # After the import, which sets them to INFO: making a database would print a page.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


class RunTracker:
    """The driver's side of an MLflow run.

    Only `open` may fail; whatever is logged later is tried, and a failure is warned of once.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Of a run that `open` made; nothing is sent yet."""
        self.run = run
        self._client = connect(run.uri)
        self.num_failures = 0

    @staticmethod
    def open(
        uri: str, *, experiment: str, name: str, artifacts: Location, tags: Mapping[str, str]
    ) -> RunTracker:
        """Make a new run.

        Args:
            uri: tracking server or SQLite file.
            experiment: made if it is not there yet.
            name: of the run.
            artifacts: where pictures go if `uri` is a database; a server says itself.
            tags: of the run.

        Raises:
            StorageError: if MLflow does not answer.
        """
        try:
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            client = connect(uri)
            found = client.get_experiment_by_name(experiment)
            place = None if uri.startswith("http") else artifacts.uri
            experiment_id = (
                client.create_experiment(experiment, artifact_location=place, tags=_EXPERIMENT_TAGS)
                if found is None
                else found.experiment_id
            )
            run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        except Exception as error:
            raise StorageError(
                f"MLflow at {uri} does not answer: {error}; start it, or name another place with "
                "--tracking.uri (a SQLite file needs no server: sqlite:///runs/mlflow.db)"
            ) from error
        return RunTracker(TrackedRun(uri, run.info.run_id, experiment_id))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write params; MLflow keeps the first value of each."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_PARAM_CHARS]) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_PER_CALL):
            chunk = entries[start : start + _PARAMS_PER_CALL]
            self._try(lambda chunk=chunk: self._client.log_batch(self.run.run_id, params=chunk))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write a point of each metric."""
        points = _metrics(StepPoint(step, int(time.time() * 1000), dict(metrics)))
        self._try(lambda: self._client.log_batch(self.run.run_id, metrics=points))

    def log_image(self, image: Image.Image, name: str) -> None:
        """Store a picture among the artifacts."""
        self._try(lambda: self._client.log_image(self.run.run_id, image, artifact_file=name))

    def log_text(self, text: str, name: str) -> None:
        """Store a text among the artifacts."""
        self._try(lambda: self._client.log_text(self.run.run_id, text, name))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._try(lambda: self._client.set_tag(self.run.run_id, key, value))

    def set_running(self) -> None:
        """Say that the run goes on, after a restart."""
        self._try(lambda: self._client.update_run(self.run.run_id, status="RUNNING"))

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._try(lambda: self._client.set_terminated(self.run.run_id, status))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            # Whatever tracking raises, training is worth more than its record.
            self.num_failures += 1
            if self.num_failures == 1:
                warnings.warn(f"MLflow at {self.run.uri}: {error}; training goes on", stacklevel=3)


@dataclass(frozen=True)
class StepPoint:
    """The metrics of one step."""

    step: int
    timestamp_ms: int
    metrics: dict[str, float]


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
        while not self._is_closed:
            self._wake.wait(_SEND_EVERY_S)
            self.flush()

    def _send(self) -> None:
        while self._incoming:
            self._unsent.append(self._incoming.popleft())
        if not self._unsent:
            return
        if time.monotonic() >= self._retry_at:
            try:
                self._send_unsent()
            except Exception as error:  # noqa: BLE001
                # Any failure of tracking is survived: the points stay, and are tried again.
                _logger.warning(
                    "MLflow at %s: %s; metrics wait in %s", self._run.uri, error, self._spool
                )
                self._retry_at = time.monotonic() + _RETRY_EVERY_S
        _write_spool(self._spool, self._unsent)

    def _send_unsent(self) -> None:
        if self._client is None:
            self._client = connect(self._run.uri)
        if self._last_logged is None:
            history = self._client.get_metric_history(self._run.run_id, STEP_METRIC)
            self._last_logged = max((metric.step for metric in history), default=-1)
        while self._unsent:
            new, used, last = [], 0, self._last_logged
            for point in self._unsent:
                # A whole step in one call, so that its last metric speaks for all of them.
                points = _metrics(point) if point.step > last else []
                if len(new) + len(points) > _METRICS_PER_CALL:
                    break
                new, used, last = new + points, used + 1, max(last, point.step)
            if new:
                self._client.log_batch(self._run.run_id, metrics=new)
            self._last_logged = last
            del self._unsent[:used]


def metric_name(name: str) -> str:
    """A name that MLflow takes: recall@1 becomes recall_at_1, what else it refuses "_"."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def _metrics(point: StepPoint) -> list[Any]:
    from mlflow.entities import Metric

    items = point.metrics.items()
    return [Metric(metric_name(k), v, point.timestamp_ms, point.step) for k, v in items]


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
