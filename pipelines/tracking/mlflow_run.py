"""An MLflow run from the driver's side: opened, described, ended with its true status.

One writer for each kind of thing: rank 0 logs the steps (`step_logger`), a thread of each machine
its load (`node_metrics`), the driver everything else, through an `Outbox` that keeps the order and
waits for a server that is away.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from clippo_core.errors import StorageError
from pipelines.runtime.storage import Location
from pipelines.tracking.outbox import Outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

#: In a run's folder: where MLflow has it.
TRACKED_FILE = "mlflow.json"
_PARAMS_PER_CALL = 100
_PARAM_CHARS = 6000
TAG_CHARS = 5000
#: MLflow would show a page for language-model applications otherwise.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
#: How long the end of a run waits for a server that is away.
PATIENCE_AT_END_S = 30.0
#: Without the first three, one call to a server that is down blocks for minutes; the last keeps a
#: line per run and ending out of the terminal, where `train` names the run itself.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run: where it is kept, and its id."""

    uri: str
    run_id: str
    experiment_id: str


@dataclass(frozen=True)
class DataSet:
    """A data set as MLflow shows it: what a run read, or a metric was measured on."""

    name: str
    digest: str
    uri: str


def connect(uri: str) -> MlflowClient:
    """A client that gives up early and keeps quiet.

    MLflow is imported here: it takes seconds, and most commands do without.
    """
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # After the import, which sets them to INFO: making a database would print a page.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def reach(uri: str) -> MlflowClient:
    """A client whose server has answered, or whose database has been made.

    Raises:
        StorageError: if MLflow does not answer.
    """
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = connect(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise _unreachable(uri, error) from error
    return client


def _unreachable(uri: str, error: Exception) -> StorageError:
    return StorageError(
        f"MLflow at {uri} does not answer: {error}; start it, or name another place with "
        "--tracking.uri (a SQLite file needs no server: sqlite:///runs/mlflow.db)"
    )


class RunTracker:
    """The driver's side of an MLflow run.

    Only `open` may fail. Everything else returns at once; `finish` tells what never got there.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Of a run that `open` made; nothing is sent yet."""
        self.run, self.client = run, connect(run.uri)
        self.outbox = Outbox(run.uri, lambda: self.client.get_run(run.run_id))

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
        client = reach(uri)
        try:
            found = client.get_experiment_by_name(experiment)
            place = None if uri.startswith("http") else artifacts.uri
            experiment_id = (
                client.create_experiment(experiment, artifact_location=place, tags=_EXPERIMENT_TAGS)
                if found is None
                else found.experiment_id
            )
            run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        except Exception as error:
            raise _unreachable(uri, error) from error
        return RunTracker(TrackedRun(uri, run.info.run_id, experiment_id))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write params; MLflow keeps the first value of each."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_PARAM_CHARS]) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_PER_CALL):
            chunk = entries[start : start + _PARAMS_PER_CALL]
            self._send("params", lambda run, chunk=chunk: self.client.log_batch(run, params=chunk))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write a point of each metric."""
        points = metric_points(metrics, step=step)
        self._send(f"metrics of step {step}", lambda run: self.client.log_batch(run, points))

    def log_picture(self, png: bytes, name: str, *, step: int) -> None:
        """Store a picture of a step: in the series of that name, and as a file of its own."""
        file = f"pictures/step_{step:08d}/{name}.png"
        self._send(file, lambda run: log_picture_file(self.client, run, png, file))
        key = picture_name(name)
        self._send(
            f"picture {key} of step {step}",
            lambda run: self.client.log_image(run, _image(png), key=key, step=step),
        )

    def log_inputs(self, data_sets: Sequence[DataSet], *, context: str) -> None:
        """Say which data sets the run reads, and what for."""
        inputs = [dataset_input(data_set, context) for data_set in data_sets]
        self._send("data sets", lambda run: self.client.log_inputs(run, inputs))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._send(f"tag {key}", lambda run: self.client.set_tag(run, key, value[:TAG_CHARS]))

    def set_running(self) -> None:
        """Say that the run goes on, after a restart."""
        self._send("status RUNNING", lambda run: self.client.update_run(run, status="RUNNING"))

    def finish(self, status: str) -> list[str]:
        """End the run: FINISHED, FAILED or KILLED.

        Returns:
            What MLflow did not take, even now.
        """
        self._send(f"status {status}", lambda run: self.client.set_terminated(run, status))
        return self.close()

    def close(self) -> list[str]:
        """Send what is left, and leave the run's status as it is.

        Returns:
            What MLflow did not take, even now.
        """
        return self.outbox.close(patience_s=PATIENCE_AT_END_S)

    def _send(self, what: str, call: Callable[[str], Any]) -> None:
        self.outbox.add(what, lambda: call(self.run.run_id))


def log_picture_file(client: MlflowClient, run_id: str, png: bytes, file: str) -> None:
    """Store a picture among the artifacts of a run."""
    client.log_image(run_id, _image(png), artifact_file=file)


def _image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def dataset_input(data_set: DataSet, context: str) -> DatasetInput:
    """A data set by name, digest and place, as MLflow keeps it; nothing of it is read."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = data_set.uri.partition("://")[0] if "://" in data_set.uri else "local"
    source = json.dumps({"uri": data_set.uri})
    dataset = Dataset(data_set.name, data_set.digest, source_type=kind, source=source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def metric_points(
    metrics: Mapping[str, float],
    *,
    step: int,
    timestamp_ms: int | None = None,
    model_id: str | None = None,
    data_set: DataSet | None = None,
    run_id: str | None = None,
) -> list[Metric]:
    """A point of each metric; with a model and a data set, also a metric of that model."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    name, digest = (data_set.name, data_set.digest) if data_set is not None else (None, None)
    return [
        Metric(metric_name(key), value, now_ms, step, model_id, name, digest, run_id)
        for key, value in metrics.items()
    ]


def metric_name(name: str) -> str:
    """A name that MLflow takes: recall@1 becomes recall_at_1, what else it refuses "_"."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def picture_name(name: str) -> str:
    """A name of a series of pictures that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
