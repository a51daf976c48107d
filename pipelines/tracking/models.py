"""MLflow models: checkpoints are logged as models, the best becomes the champion, any is found.

A model holds the checkpoint's own files (without the optimizer's), a copy of clippo_core, and one
module that MLflow calls. Nothing in it has to be unpickled, and `find_model` reads the checkpoint
alone.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import clippo_core
from clippo_core.checkpoints.native import CONFIG_FILE, FORMAT, MOMENTS_FILE, STATE_FILE
from clippo_core.config import ClippoConfig
from clippo_core.errors import CheckpointError
from pipelines.config.resolution import tracking_uri
from pipelines.config.settings import RunConfig
from pipelines.runtime.run_checkpoints import checkpoint_step, fetched, find_checkpoint
from pipelines.runtime.scratch import scratch_folder
from pipelines.runtime.storage import Location
from pipelines.tracking import clippo_pyfunc
from pipelines.tracking.mlflow_client import DataSet, connect, metric_name
from pipelines.tracking.mlflow_run import RunTracker

CHAMPION = "champion"
STEP_TAG = "clippo.step"
#: Tag of a version that names its logged model; MLflow's own field is empty in a search.
MODEL_TAG = "clippo.model_id"
_SCHEME = "models:/"
#: The packages that clippo_core imports.
_PACKAGES = (
    *("torch", "numpy", "numba", "pillow", "safetensors", "pydantic", "jaxtyping"),
    "sentencepiece",
)


class CheckpointModels:
    """The MLflow models of a run; its calls are sent in the order in which they were made."""

    def __init__(
        self, tracker: RunTracker, config: ClippoConfig, *, registered_model: str | None
    ) -> None:
        """Take a run, of which nothing is logged yet.

        Args:
            tracker: the driver's side of the MLflow run.
            config: settings of the run that makes the checkpoints.
            registered_model: name in the registry; None: models are logged only.
        """
        self._queue, self._client, self._run = tracker.queue, tracker.client, tracker.run
        self._config, self._name = config, registered_model or ""
        self._known: dict[int, str] | None = None
        self._being_read: str | None = None

    @property
    def checkpoint_in_use(self) -> str | None:
        """Return the checkpoint whose files are being copied, if there is one."""
        return self._being_read

    def publish(self, checkpoint: str, *, params: Mapping[str, Any]) -> None:
        """Log a checkpoint as a model, and register it."""
        name = Location.of(checkpoint).name
        step = checkpoint_step(name) or 0
        self._add(f"model of {name}", self._publish, checkpoint, step, dict(params))
        if self._name:
            self._add(f"version of {self._name} of {name}", self._register, step)

    def judge(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        data_set: DataSet,
        champion_metric: str | None = None,
        less_is_better: bool = False,
    ) -> None:
        """Attach metrics to the model of a step; move the alias if the deciding one is better.

        Args:
            step: step of the checkpoint.
            metrics: the metrics, by the names that they have in the run.
            data_set: the data set that they were measured on.
            champion_metric: name of the metric that decides; None: none of them does.
            less_is_better: True if lower values of that metric are better.
        """
        self._add(f"evaluation of step {step}", self._log_metrics, step, metrics, data_set)
        if self._name and champion_metric is not None:
            name = metric_name(champion_metric)
            what = f"{CHAMPION} of {self._name}"
            self._add(what, self._compare, step, name, data_set, less_is_better)

    def retire(self, checkpoint: str) -> None:
        """Remove the model of a checkpoint that is gone, unless an alias points to it."""
        name = Location.of(checkpoint).name
        self._add(f"removal of the model of {name}", self._retire, checkpoint_step(name) or 0)

    def _add(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        self._queue.add(what, functools.partial(call, *arguments))

    def _models(self) -> dict[int, str]:
        """Return model ids by step, with those of earlier attempts at the run."""
        if self._known is None:
            found = self._client.search_logged_models(
                [self._run.experiment_id], filter_string=f"source_run_id='{self._run.run_id}'"
            )
            self._known = {
                int(model.tags[STEP_TAG]): model.model_id
                for model in found
                if STEP_TAG in model.tags and str(model.status) == "READY"
            }
        return self._known

    def _publish(self, checkpoint: str, step: int, params: dict[str, Any]) -> None:
        place = Location.of(checkpoint)
        self._being_read = checkpoint
        try:
            # A checkpoint that was removed while the server was away is not asked for any more.
            if step in self._models() or not place.exists():
                return
            with fetched(place) as path:
                tags = {STEP_TAG: str(step), "clippo.checkpoint": checkpoint}
                self._models()[step] = self._upload(path, step, tags, params)
        finally:
            self._being_read = None

    def _upload(self, path: Path, step: int, tags: dict[str, str], params: dict[str, Any]) -> str:
        from mlflow.entities import LoggedModelOutput

        run_id = self._run.run_id
        model_id = self._client.create_logged_model(
            self._run.experiment_id,
            name=f"step-{step}",
            source_run_id=run_id,
            tags=tags,
            params={key: str(value) for key, value in params.items()},
            model_type="clippo",
        ).model_id
        with scratch_folder() as aside:
            folder = aside / "model"
            write_model(folder, path, self._config, run_id=run_id, model_id=model_id)
            self._client.log_model_artifacts(model_id, str(folder))
            place = Location.of(self._client.get_logged_model(model_id).artifact_location)
            if place.is_local:
                store_once(path, Path(place.uri))
        self._client.finalize_logged_model(model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
        return model_id

    def _register(self, step: int) -> None:
        model_id = self._models().get(step)
        if model_id is None or self._version_of(step) is not None:
            return
        if not self._client.search_registered_models(f"name='{self._name}'"):
            self._client.create_registered_model(self._name)
        made = self._client.create_model_version(
            self._name,
            # Not models:/ID: that is looked up where the process' own MLflow points to.
            source=self._client.get_logged_model(model_id).artifact_location,
            run_id=self._run.run_id,
            tags={STEP_TAG: str(step), MODEL_TAG: model_id},
            model_id=model_id,
        )
        # As MLflow's own registering does; its page of models reads it.
        versions = json.dumps([{"name": self._name, "version": made.version}])
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})

    def _log_metrics(self, step: int, metrics: Mapping[str, float], data_set: DataSet) -> None:
        from mlflow.entities import Metric

        run_id, now_ms = self._run.run_id, int(time.time() * 1000)
        measured = (self._models().get(step), data_set.name, data_set.digest, run_id)
        points = [
            Metric(metric_name(key), value, now_ms, step, *measured)
            for key, value in metrics.items()
        ]
        self._client.log_batch(run_id, points)

    def _compare(self, step: int, metric: str, data_set: DataSet, less_is_better: bool) -> None:
        """Move the alias to the model of a step if its metric, on the same data, is better."""
        version = self._version_of(step)
        value = self._value(self._models().get(step, ""), metric, data_set)
        if version is None or value is None:
            return
        note = f"version {version}: {metric} {value:.6g} at step {step}"
        if CHAMPION in self._client.get_registered_model(self._name).aliases:
            held_by = self._client.get_model_version_by_alias(self._name, CHAMPION)
            best = self._value(held_by.tags.get(MODEL_TAG, ""), metric, data_set)
            if best is not None and not is_better(value, best, less_is_better=less_is_better):
                return
            if best is None:
                note = f"not compared: version {held_by.version} has no {metric} on this data"
                version = held_by.version
        self._client.set_registered_model_alias(self._name, CHAMPION, version)
        self._client.set_tag(self._run.run_id, f"clippo.{CHAMPION}", note)

    def _value(self, model_id: str, metric: str, data_set: DataSet) -> float | None:
        found = (self._client.get_logged_model(model_id).metrics or []) if model_id else []
        of_data = [m.value for m in found if (m.key, m.dataset_digest) == (metric, data_set.digest)]
        return of_data[-1] if of_data else None

    def _version_of(self, step: int) -> str | None:
        versions = self._client.search_model_versions(
            f"name='{self._name}' and run_id='{self._run.run_id}'"
        )
        return next((v.version for v in versions if v.tags.get(STEP_TAG) == str(step)), None)

    def _retire(self, step: int) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        model_id = self._models().get(step)
        if model_id is None:
            return
        version = self._version_of(step) if self._name else None
        if version is not None:
            if self._client.get_model_version(self._name, version).aliases:
                return
            self._client.delete_model_version(self._name, version)
        place = self._client.get_logged_model(model_id).artifact_location
        get_artifact_repository(place, tracking_uri=self._run.uri).delete_artifacts()
        self._client.delete_logged_model(model_id)
        del self._models()[step]


def store_once(checkpoint: Path, model: Path) -> None:
    """Let files of a model share their place on a disk with those of the checkpoint it is made of.

    Neither is ever changed, only removed, which leaves the other's in place.
    """
    for copy in model.rglob("*"):
        original = checkpoint / copy.name
        if not (copy.is_file() and original.is_file()):
            continue
        here, there = copy.stat(), original.stat()
        if (here.st_dev, here.st_size) == (there.st_dev, there.st_size) and here.st_size > 2**16:
            aside = copy.with_name(f".{copy.name}")
            # Some file systems have no hard links; there it stays a copy.
            with suppress(OSError):
                os.link(original, aside)
                aside.replace(copy)


def is_better(value: float, best: float, *, less_is_better: bool) -> bool:
    """Tell whether a value of a metric beats another; NaN never does."""
    return value < best if less_is_better else value > best


def write_model(
    folder: Path, checkpoint: Path, config: ClippoConfig, *, run_id: str, model_id: str
) -> None:
    """Write an MLflow model of a checkpoint's folder.

    Args:
        folder: the folder to make.
        checkpoint: a native checkpoint; what only training needs is left out.
        config: settings of the checkpoint's model.
        run_id: MLflow's id of the run that made it.
        model_id: MLflow's id of the logged model.
    """
    with warnings.catch_warnings():
        # MLflow warns of type hints of its own.
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
    from mlflow.models import Model, infer_signature

    example, embeddings = _input_example(), np.zeros((2, config.vit.embed_dim), np.float32)
    # Given, since finding them out would load the model in a process of its own; a local version
    # such as 2.13.0+cpu is on no index.
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in _PACKAGES}
    with scratch_folder() as aside:
        data = aside / "checkpoint"
        data.mkdir()
        for file in checkpoint.iterdir():
            if file.name not in (STATE_FILE, MOMENTS_FILE):
                # MLflow copies what a link points to.
                (data / file.name).symlink_to(file.resolve())
        mlflow.pyfunc.save_model(
            folder,
            loader_module=clippo_pyfunc.__name__.rpartition(".")[2],
            data_path=str(data),
            code_paths=[clippo_core.__path__[0], str(Path(clippo_pyfunc.__file__))],
            signature=infer_signature(example, embeddings),
            input_example=example,
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )


def _input_example() -> Any:
    """Return a table with a text and a picture, from which MLflow sees that either may lack."""
    import pandas as pd

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "PNG")
    columns = {
        clippo_pyfunc.TEXT: ["a red square", None],
        clippo_pyfunc.IMAGE: [None, buffer.getvalue()],
    }
    return pd.DataFrame(columns, dtype=object)


def is_registered(reference: str) -> bool:
    """Tell whether a reference names a registered model."""
    return reference.startswith(_SCHEME)


def find_model(reference: str) -> Location:
    """Return the place of the checkpoint that a person means.

    Args:
        reference: a name that `find_checkpoint` takes, or a model of MLflow's registry:
            `models:/NAME@ALIAS`, `models:/NAME/VERSION`. The registry is that of
            MLFLOW_TRACKING_URI, else the SQLite file beside the runs.

    Returns:
        The checkpoint's place. A registered model is on this disk until the process ends.

    Raises:
        CheckpointError: if there is none.
    """
    if not is_registered(reference):
        return find_checkpoint(reference)
    folder = _download(reference)
    configs = [file for file in sorted(folder.rglob(CONFIG_FILE)) if _is_checkpoints(file)]
    if len(configs) != 1:
        raise CheckpointError(
            f"{reference} holds {len(configs)} checkpoints; expected one folder in it with the "
            f"{CONFIG_FILE} of a native checkpoint, as train registers it"
        )
    return Location.of(configs[0].parent)


def model_name(reference: str, checkpoint: Location) -> str:
    """Name a model: "RUN/step_00000200", a file's name, "NAME@ALIAS" or "NAME-VERSION".

    Args:
        reference: the name that a person gave.
        checkpoint: the place that `find_model` found for it.
    """
    if is_registered(reference):
        return reference.removeprefix(_SCHEME).replace("/", "-")
    if checkpoint.parent.name == "checkpoints":
        return f"{checkpoint.parent.parent.name}/{checkpoint.name}"
    return checkpoint.name


def _download(reference: str) -> Path:
    uri = tracking_uri(RunConfig())
    connect(uri)
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    until_the_end = ExitStack()
    aside = until_the_end.enter_context(scratch_folder())
    atexit.register(until_the_end.close)
    try:
        found = mlflow.artifacts.download_artifacts(
            reference, dst_path=str(aside), tracking_uri=uri
        )
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"{reference} cannot be had from MLflow at {uri}: {error}; expected "
            "models:/NAME@ALIAS or models:/NAME/VERSION of a model that is registered there "
            "(MLFLOW_TRACKING_URI names another server)"
        ) from None
    return Path(found)


def _is_checkpoints(config: Path) -> bool:
    try:
        content = json.loads(config.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
