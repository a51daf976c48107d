"""Registered MLflow models as checkpoints: every command takes `models:/NAME@ALIAS` for one.

A registered model is a folder in which a native checkpoint lies; whatever else is in it is for
others to use, and nothing of it is loaded here.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from clippo_core.checkpoints.native import CONFIG_FILE, FORMAT
from clippo_core.errors import CheckpointError
from pipelines.config.resolution import tracking_uri
from pipelines.config.settings import RunConfig
from pipelines.runtime.run_checkpoints import find_checkpoint
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_run import connect

_SCHEME = "models:/"


def is_registered(reference: str) -> bool:
    """Whether a reference names a registered model."""
    return reference.startswith(_SCHEME)


def find_model(reference: str) -> Location:
    """The checkpoint that a person means.

    Args:
        reference: what `find_checkpoint` takes, or a model of MLflow's registry:
            `models:/NAME@ALIAS`, `models:/NAME/VERSION`. The registry is that of
            MLFLOW_TRACKING_URI, else the SQLite file beside the runs.

    Returns:
        Its place. A registered model is on this disk until the process ends.

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
    """What to call a model: "RUN/step_00000200", a file's name, "NAME@ALIAS", "NAME-VERSION".

    Args:
        reference: as a person gave it.
        checkpoint: as `find_model` found it.
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

    aside = tempfile.mkdtemp(prefix="clippo-model-")
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    try:
        found = mlflow.artifacts.download_artifacts(reference, dst_path=aside, tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"{reference} cannot be had from MLflow at {uri}: {error}; expected "
            "models:/NAME@ALIAS or models:/NAME/VERSION of a model that is registered there "
            "(MLFLOW_TRACKING_URI names another server)"
        ) from None
    return Path(found)


def _is_checkpoints(config: Path) -> bool:
    """Whether a config.json is that of a native checkpoint."""
    try:
        content = json.loads(config.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
