"""The native checkpoint: a folder that holds everything, and nothing that has to be unpickled.

    config.json              what the model computes: architecture, rendering, image preprocessing;
                             of a fine-tuned one also its head and the names of its labels; and the
                             SHA-256 of every other file
    model.safetensors        its weights
    font.glyphs.xz           the font, unless it is the bundled one
    vocabulary.model         of a baseline, which reads tokens
    train_state.json         step, samples seen, and whatever else the trainer wants back
    train_state.safetensors  the optimizer's moments

The last two are there when the checkpoint was made in training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from clippo_core.config import ClassifierConfig, ClippoConfig, from_json, to_dict
from clippo_core.errors import CheckpointError, ConfigError
from clippo_core.modeling import PairModel
from clippo_core.modeling.classifier import Classifier
from clippo_core.rendering.unifont import GlyphTable, load_font
from clippo_core.vocabulary import Vocabulary

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FONT_FILE = "font.glyphs.xz"
VOCABULARY_FILE = "vocabulary.model"
STATE_FILE = "train_state.json"
MOMENTS_FILE = "train_state.safetensors"
FORMAT = "clippo"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedState:
    """The trainer's part of a checkpoint beside the weights: tensors by name, and JSON values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def save_checkpoint(path: str | Path, model: PairModel, *, state: SavedState | None = None) -> None:
    """Write a checkpoint folder: aside first, then renamed, so that no half of it is ever seen.

    An older checkpoint of that name is replaced.

    Raises:
        CheckpointError: if `path` is a file, or a folder that is no checkpoint.
    """
    target = Path(path)
    if target.exists() and not (target / CONFIG_FILE).is_file():
        raise CheckpointError(f"{target} exists and is no checkpoint; name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not by `tempfile`, whose folders nobody else may read.
    aside = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        _write_files(aside, model, state)
        if target.exists():
            shutil.rmtree(target)
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_files(folder: Path, model: PairModel, state: SavedState | None) -> None:
    config: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "clippo": to_dict(model.config),
    }
    if isinstance(model, Classifier):
        config["classifier"] = to_dict(model.classifier_config)
    _save_tensors(folder / WEIGHTS_FILE, model.state_dict())
    if not model.renderer.font.is_bundled:
        (folder / FONT_FILE).write_bytes(model.renderer.font.to_bytes())
    if model.vocabulary is not None:
        (folder / VOCABULARY_FILE).write_bytes(model.vocabulary.model)
    if state is not None:
        _save_tensors(folder / MOMENTS_FILE, state.tensors)
        (folder / STATE_FILE).write_text(json.dumps(state.values, indent=2) + "\n")
    config["sha256"] = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    # safetensors lets nobody else read its files.
    for name in config["sha256"]:
        (folder / name).chmod((folder / CONFIG_FILE).stat().st_mode)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def verify_checkpoint(path: str | Path) -> None:
    """Make sure that a checkpoint folder is what was written: all files, each with its SHA-256.

    Of checkpoints that older versions wrote, which do not name any, the files are read.

    Raises:
        CheckpointError: naming the first file that is missing or damaged.
    """
    folder = Path(path)
    _read_config(folder)
    digests = _digests(folder)
    for name in digests:
        _require_sound(folder / name, digests)
    if not digests:
        read_native(folder)
        if (folder / STATE_FILE).is_file():
            read_state(folder)


def _digests(folder: Path) -> dict[str, str]:
    """Return the digests that the config names; none of checkpoints of older versions."""
    found = _parse_json(folder / CONFIG_FILE).get("sha256", {})
    is_valid = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not is_valid or any("/" in name for name in found):
        raise CheckpointError(f"{folder / CONFIG_FILE} is damaged: sha256 names no files")
    return cast("dict[str, str]", found)


def _require_sound(file: Path, digests: Mapping[str, str]) -> None:
    """Make sure that a file is there, and has the digest that the config names, if it does."""
    try:
        is_sound = file.name not in digests or _sha256(file) == digests[file.name]
    except OSError as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}") from None
    if not is_sound:
        raise CheckpointError(
            f"{file} is missing or damaged: its SHA-256 is not the one that {CONFIG_FILE} names"
        )


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(on_cpu, path)


def read_native(
    path: str | Path, *, font: str | None = None
) -> tuple[ClippoConfig, dict[str, Tensor], GlyphTable | None]:
    """Return the model's settings, its weights, and its font where that is not the bundled one.

    Args:
        path: the folder.
        font: a font file to use instead of the stored one; it must have the same glyphs.

    Raises:
        CheckpointError: if a file is missing, damaged, or of a later format.
    """
    folder = Path(path)
    config, digests = _read_config(folder), _digests(folder)
    for name in (WEIGHTS_FILE, FONT_FILE):
        if (folder / name).exists():
            _require_sound(folder / name, digests)
    state = _load_tensors(folder / WEIGHTS_FILE)
    stored_font = folder / FONT_FILE
    if font is None and not stored_font.is_file():
        return config, state, None
    return config, state, load_font(font or str(stored_font))


def read_classifier(path: str | Path) -> ClassifierConfig | None:
    """Return the classifier settings of a checkpoint folder; None where it has none.

    Raises:
        CheckpointError: if its config is missing, damaged, or of a later format.
    """
    folder = Path(path)
    _read_config(folder)
    found = _parse_json(folder / CONFIG_FILE).get("classifier")
    if found is None:
        return None
    try:
        where = f"classifier in {folder / CONFIG_FILE}"
        return from_json(ClassifierConfig, json.dumps(found), where=where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def read_vocabulary(path: str | Path, config: ClippoConfig) -> Vocabulary:
    """Return the vocabulary of a baseline.

    Raises:
        CheckpointError: if it is missing, damaged, or not the one that the config names.
    """
    file = Path(path) / VOCABULARY_FILE
    try:
        vocabulary = Vocabulary(file.read_bytes())
    except (OSError, ConfigError) as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}") from None
    if vocabulary.sha256 != config.vocabulary_sha256:
        raise CheckpointError(f"{file} is not the vocabulary that {CONFIG_FILE} names")
    return vocabulary


def read_state(path: str | Path) -> SavedState:
    """Return what the trainer stored.

    Raises:
        CheckpointError: if the checkpoint was not made in training, or is damaged.
    """
    folder = Path(path)
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} holds weights only; training cannot go on from it")
    digests = _digests(folder)
    for name in (STATE_FILE, MOMENTS_FILE):
        _require_sound(folder / name, digests)
    values = _parse_json(folder / STATE_FILE)
    return SavedState(tensors=_load_tensors(folder / MOMENTS_FILE), values=values)


def _read_config(folder: Path) -> ClippoConfig:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no {CONFIG_FILE}; expected a folder that train or "
            "convert made, or a big_vision .npz file"
        )
    content = _parse_json(folder / CONFIG_FILE)
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says format {content.get('format')!r} version "
            f"{content.get('format_version')!r}; this program reads {FORMAT!r} {FORMAT_VERSION}"
        )
    try:
        where = str(folder / CONFIG_FILE)
        return from_json(ClippoConfig, json.dumps(content.get("clippo")), where=where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _parse_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return cast("dict[str, Any]", content)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Copies, since the file's own places are aligned to 8 bytes only, and products round
        # otherwise there on some processors.
        return {name: x.clone() for name, x in safetensors.torch.load_file(path).items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from None
