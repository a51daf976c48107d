"""MLflow's client, set up to give up early; runs, data sets and names as MLflow takes them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clippo_core.errors import StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

#: Settings of MLflow's client. Without the first three a call to a server that is down blocks for
#: minutes; the last keeps its lines about runs out of the terminal, where `train` names the run.
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
    """A data set as MLflow shows it: an input of a run, or the data behind a metric."""

    name: str
    digest: str
    uri: str

    def to_mlflow(self, context: str) -> DatasetInput:
        """Return it as a run's input, by name, digest and place, without reading the data."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = self.uri.partition("://")[0] if "://" in self.uri else "local"
        source = json.dumps({"uri": self.uri})
        dataset = Dataset(self.name, self.digest, source_type=kind, source=source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def connect(uri: str) -> MlflowClient:
    """Return a client that gives up early and keeps quiet; nothing is asked of the server yet.

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
    """Return a client whose server has answered, or whose database has been made.

    Raises:
        StorageError: if MLflow does not answer.
    """
    with mlflow_errors(uri):
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = connect(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Raise a StorageError that says what to do for any failure of MLflow within.

    Raises:
        StorageError: if MLflow does not answer.
    """
    try:
        yield
    except Exception as error:
        raise StorageError(
            f"MLflow at {uri} does not answer: {error}; start it, or name another place with "
            "--tracking.uri (a SQLite file needs no server: sqlite:///runs/mlflow.db)"
        ) from error


def metric_name(name: str) -> str:
    """Return a name that MLflow takes: "@" becomes "_at_", any other refused character "_"."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)
