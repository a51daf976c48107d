"""Reading and writing of checkpoints: the native folder, and the authors' `.npz`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clippo_core.checkpoints.big_vision import read_big_vision, write_big_vision
from clippo_core.checkpoints.native import (
    CONFIG_FILE,
    SavedState,
    read_classifier,
    read_native,
    read_state,
    read_vocabulary,
    save_checkpoint,
    verify_checkpoint,
)
from clippo_core.config import ClippoConfig, to_dict
from clippo_core.errors import CheckpointError
from clippo_core.modeling import PairModel, make_model, without_values
from clippo_core.modeling.classifier import Classifier
from clippo_core.modeling.vit import resize_positions
from clippo_core.rendering.unifont import GlyphTable

__all__ = [
    "SavedState",
    "load_checkpoint",
    "load_weights",
    "model_identity",
    "read_classifier",
    "read_state",
    "save_checkpoint",
    "verify_checkpoint",
    "write_big_vision",
]

_POSITIONS = "encoder.position_embedding"


def load_checkpoint(
    path: str | Path, *, image_size_px: int | None = None, font: str | None = None
) -> PairModel:
    """Return a model, ready to encode.

    Args:
        path: a native folder, a run's folder (its newest checkpoint) or a big_vision `.npz`, on
            this disk.
        image_size_px: canvas to use instead of the stored one; the position grid is resized.
        font: font file that the texts of a `.npz` were drawn with (the published ones: Unifont
            9.0.06); for a native checkpoint, where its font is to be read from instead.

    Returns:
        The model, on the CPU, in evaluation mode; a `Classifier` where it was fine-tuned.

    Raises:
        CheckpointError: if it is missing, damaged, of another format, or does not fit its config.
        RenderError: if the font is not the one that it was trained with.
    """
    path = _newest_of_run(Path(path))
    config, state, glyphs = _read(path, font)
    if image_size_px is not None:
        render = dataclasses.replace(config.render, image_size_px=image_size_px)
        config = dataclasses.replace(config, render=render)
    # No memory is spent on fresh weights: the loaded ones take their place.
    classifier = read_classifier(path) if Path(path).is_dir() else None
    vocabulary = read_vocabulary(path, config) if config.reads_tokens else None
    with without_values():
        model = make_model(config, font=glyphs, vocabulary=vocabulary, classifier=classifier)
    load_weights(model, state, where=path, assign=True)
    return model.eval()


def _newest_of_run(path: Path) -> Path:
    """Return the newest whole checkpoint in a run's folder; other paths as they are.

    Raises:
        CheckpointError: if the run has none yet.
    """
    if (path / CONFIG_FILE).is_file() or not (path / "checkpoints").is_dir():
        return path
    whole = [place.parent for place in (path / "checkpoints").glob(f"step_*/{CONFIG_FILE}")]
    if not whole:
        raise CheckpointError(f"{path} is a run without a checkpoint yet")
    return max(whole)


def load_weights(
    model: PairModel, state: Mapping[str, Tensor], *, where: str | Path, assign: bool = False
) -> None:
    """Put weights into a model, strictly; only the position grid may be of another size.

    Args:
        model: model of the same architecture.
        state: weights, named as by `state_dict()` of such a model.
        where: name of the weights' source in errors.
        assign: take the tensors themselves instead of copying their values.

    Raises:
        CheckpointError: naming what is missing, unknown, or of another shape.
    """
    state = dict(state)
    if _POSITIONS in state:
        shape = tuple(state[_POSITIONS].shape)
        if len(shape) != 3 or math.isqrt(shape[1]) ** 2 != shape[1] or not shape[1]:
            raise CheckpointError(
                f"{where} has position embeddings of shape {shape}; expected [1, patches, width] "
                "of a square grid"
            )
        state[_POSITIONS] = resize_positions(state[_POSITIONS], grid_size=model.config.grid_size)
    try:
        model.load_state_dict(state, strict=True, assign=assign)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {where} do not fit the model: {error}") from None


def model_identity(model: PairModel) -> str:
    """Return a digest of everything that decides what a model computes: weights and configs."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config), sort_keys=True).encode())
    if isinstance(model, Classifier):
        classifier = to_dict(model.classifier_config)
        digest.update(json.dumps(classifier, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _read(
    path: Path, font: str | None
) -> tuple[ClippoConfig, dict[str, Tensor], GlyphTable | None]:
    if path.is_dir():
        return read_native(path, font=font)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected a checkpoint folder or .npz file")
    config, state = read_big_vision(path)
    render = dataclasses.replace(config.render, font=font)
    return dataclasses.replace(config, render=render), state, None
