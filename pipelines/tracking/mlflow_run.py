"""The driver's side of an MLflow run: it opens, describes and ends the run."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_client import DataSet, TrackedRun, mlflow_errors, reach
from pipelines.tracking.mlflow_queue import MlflowQueue

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: File in a run's folder that says where MLflow has the run.
TRACKED_FILE = "mlflow.json"
_PARAMS_PER_CALL = 100
_PARAM_CHARS = 6000
TAG_CHARS = 5000
#: Tag without which MLflow shows a page for language-model applications.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
#: Seconds for which the end of a run waits for a server that is away.
PATIENCE_AT_END_S = 30.0


class RunTracker:
    """The driver's side of an MLflow run.

    Only `open` may fail. Everything else returns at once; `finish` tells what MLflow did not take.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Go on with a run that `open` made; nothing is sent yet."""
        self.run, self.queue = run, MlflowQueue(run)
        self.client = self.queue.client

    @staticmethod
    def open(
        uri: str, *, experiment: str, name: str, artifacts: Location, tags: Mapping[str, str]
    ) -> RunTracker:
        """Make a new run.

        Args:
            uri: tracking server or SQLite file.
            experiment: name of the experiment, which is made if it is not there yet.
            name: name of the run.
            artifacts: where pictures go if `uri` is a database; a server decides itself.
            tags: tags of the run.

        Raises:
            StorageError: if MLflow does not answer.
        """
        client = reach(uri)
        with mlflow_errors(uri):
            found = client.get_experiment_by_name(experiment)
            place = None if uri.startswith("http") else artifacts.uri
            experiment_id = (
                client.create_experiment(experiment, artifact_location=place, tags=_EXPERIMENT_TAGS)
                if found is None
                else found.experiment_id
            )
            run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
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
        self.queue.log(step, metrics)

    def log_picture(self, png: bytes, name: str, *, step: int) -> None:
        """Store a picture of a step: in the series of that name, and as a file of its own."""
        file = f"pictures/step_{step:08d}/{name}.png"
        self._send(file, lambda run: log_picture_file(self.client, run, png, file))
        key = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
        self._send(
            f"picture {key} of step {step}",
            lambda run: self.client.log_image(run, _image(png), key=key, step=step),
        )

    def log_text(self, text: str, file: str) -> None:
        """Store a text as an artifact."""
        self._send(file, lambda run: self.client.log_text(run, text, file))

    def log_inputs(self, data_sets: Sequence[DataSet], *, context: str) -> None:
        """Log the data sets that the run reads, with the purpose."""
        inputs = [data_set.to_mlflow(context) for data_set in data_sets]
        self._send("data sets", lambda run: self.client.log_inputs(run, inputs))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._send(f"tag {key}", lambda run: self.client.set_tag(run, key, value[:TAG_CHARS]))

    def set_running(self) -> None:
        """Set the run's status to running, after a restart."""
        self._send("status RUNNING", lambda run: self.client.update_run(run, status="RUNNING"))

    def finish(self, status: str) -> list[str]:
        """End the run as FINISHED, FAILED or KILLED, and return what MLflow did not take."""
        self._send(f"status {status}", lambda run: self.client.set_terminated(run, status))
        return self.close()

    def close(self) -> list[str]:
        """Send what is left, and return what MLflow did not take; the run's status stays."""
        return self.queue.close(patience_s=PATIENCE_AT_END_S)

    def _send(self, what: str, call: Callable[[str], Any]) -> None:
        self.queue.add(what, lambda: call(self.run.run_id))


def log_picture_file(client: MlflowClient, run_id: str, png: bytes, file: str) -> None:
    """Store a picture among the artifacts of a run."""
    client.log_image(run_id, _image(png), artifact_file=file)


def _image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
