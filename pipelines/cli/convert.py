"""`convert` writes a checkpoint in another format and compares the two on a probe batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
import tyro

from clippo_core.checkpoints import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    write_big_vision,
)
from clippo_core.config import ClippoConfig, ImageConfig, RenderConfig, to_dict
from clippo_core.errors import ConfigError
from clippo_core.modeling import PairModel
from clippo_core.modeling.classifier import Classifier
from clippo_core.modeling.pair_model import normalize
from clippo_core.rendering import load_font
from pipelines.cli.arguments import parse
from pipelines.runtime.run_checkpoints import fetched
from pipelines.tracking.models import find_model

_PROBE_TEXTS = ("a red car", "ein rotes Auto", "красная машина", "赤い車", "لال گاڑی", "")


@dataclass(frozen=True)
class ConvertArguments:
    """Convert a checkpoint and compare what the two compute."""

    checkpoint: tyro.conf.Positional[str]
    """A native checkpoint, a run, or a big_vision .npz; a path or URI; or models:/NAME@ALIAS."""
    to: Literal["native", "safetensors", "big_vision"] = "native"
    """native: a folder; safetensors: the weights alone; big_vision: the authors' .npz."""
    out: Path | None = None
    """The file or folder to write; None: beside the checkpoint, or in the current folder."""
    font: str | None = None
    """Font that a .npz was trained with; Unifont 9.0.06 for the published ones."""


def run(argv: list[str]) -> None:
    """Convert a checkpoint; the last line is the path of the new one."""
    arguments = parse(ConvertArguments, argv, command="convert")
    place = find_model(arguments.checkpoint)
    suffix = {"native": "", "safetensors": ".safetensors", "big_vision": ".npz"}[arguments.to]
    name = place.name.removesuffix(".npz")
    out = arguments.out or Path(f"{name}{suffix}")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another with --out")
    with fetched(place) as path:
        model = load_checkpoint(path, font=arguments.font)
    out.parent.mkdir(parents=True, exist_ok=True)
    again = _write_and_load(model, out, arguments.to)
    if arguments.to != "native" and (lost := _not_carried(model)):
        print(f"{arguments.to} holds weights only; it does not say: {', '.join(lost)}")
    print(f"largest difference on a probe batch: {largest_difference(model, again):.3g}")
    print(out)


def largest_difference(one: PairModel, other: PairModel) -> float:
    """Return how far two models' embeddings of random pictures and of texts are apart."""
    size = one.config.render.image_size_px
    noise = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    texts = np.stack([one.renderer.render(text) for text in _PROBE_TEXTS])
    pixels = torch.from_numpy(np.concatenate([noise, texts]))
    with torch.no_grad():
        first, second = (normalize(model.encoder(pixels)) for model in (one, other))
        scales = one.logit_scale - other.logit_scale
    found = [float((first - second).abs().max()), float(scales.abs().max())]
    if one.config.reads_tokens:
        found.append(
            float(np.abs(one.encode_texts(_PROBE_TEXTS) - other.encode_texts(_PROBE_TEXTS)).max())
        )
    return max(found)


def _write_and_load(model: PairModel, out: Path, to: str) -> PairModel:
    if to == "native":
        save_checkpoint(out, model)
        return load_checkpoint(out)
    if to == "big_vision":
        write_big_vision(out, model.state_dict())
        return load_checkpoint(out)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, out)
    again = copy.deepcopy(model)
    load_weights(again, safetensors.torch.load_file(out), where=out)
    return again


def _not_carried(model: PairModel) -> list[str]:
    """Return the settings that a reader of bare weights would not assume."""
    assumed = ClippoConfig(
        vit=model.config.vit,
        render=RenderConfig(
            image_size_px=model.config.render.image_size_px, font_sha256=load_font().sha256
        ),
        image=ImageConfig(resize="bilinear"),
    )
    actual = to_dict(model.config)
    lost = ["its labels, and how they are read"] if isinstance(model, Classifier) else []
    for group in ("render", "image"):
        for name, value in to_dict(assumed)[group].items():
            if actual[group][name] != value:
                lost.append(f"{group}.{name}={actual[group][name]}")
    if model.config.text_patches != "all":
        lost.append(f"text_patches={model.config.text_patches}")
    return lost
