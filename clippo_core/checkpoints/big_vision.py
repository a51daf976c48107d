"""The authors' checkpoint format: one flat `.npz` of arrays under Flax parameter names.

Reading and writing rename arrays and stack or split queries, keys and values; no number changes.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clippo_core.config import ClippoConfig, ImageConfig, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, ClippoError
from clippo_core.npy import declared_bytes

Arrays = Mapping[str, np.ndarray]

#: Flax's name of each layer of a native block, and the parts that are stacked in it, in order.
_BLOCK_LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "norm_attention": ("LayerNorm_0", ()),
    "attention.query_key_value": ("MultiHeadDotProductAttention_0", ("query", "key", "value")),
    "attention.output": ("MultiHeadDotProductAttention_0/out", ()),
    "norm_mlp": ("LayerNorm_1", ()),
    "mlp.hidden": ("MlpBlock_0/Dense_0", ()),
    "mlp.output": ("MlpBlock_0/Dense_1", ()),
}
_OUTER_LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "patch_embedding": ("embedding", ()),
    "norm": ("Transformer/encoder_norm", ()),
    "pooling.query": ("MAPHead_0/MultiHeadDotProductAttention_0", ("query",)),
    "pooling.key_value": ("MAPHead_0/MultiHeadDotProductAttention_0", ("key", "value")),
    "pooling.output": ("MAPHead_0/MultiHeadDotProductAttention_0/out", ()),
    "pooling.norm": ("MAPHead_0/LayerNorm_0", ()),
    "pooling.mlp.hidden": ("MAPHead_0/MlpBlock_0/Dense_0", ()),
    "pooling.mlp.output": ("MAPHead_0/MlpBlock_0/Dense_1", ()),
    "head": ("head", ()),
}
_SINGLE_PARAMETERS = {
    "encoder.position_embedding": "img/pos_embedding",
    "encoder.pooling.probe": "img/MAPHead_0/probe",
    "log_logit_scale": "t",
}
#: Name of the parameter that only models trained with the sigmoid loss have, here and there.
_BIAS, _FLAX_BIAS = "logit_bias", "b"
#: How many times the size of the file its arrays may have: weights hardly compress.
_LARGEST_RATIO, _ALWAYS_ALLOWED_BYTES = 20, 2**26


@dataclass(frozen=True)
class _Correspondence:
    """One native parameter and the arrays that it is stacked from."""

    name: str
    keys: tuple[str, ...]
    is_stacked: bool


def _correspondences(depth: int, *, has_bias: bool) -> Iterator[_Correspondence]:
    layers = {
        f"encoder.{name}": (f"img/{flax}", parts) for name, (flax, parts) in _OUTER_LAYERS.items()
    }
    for block in range(depth):
        for name, (flax, parts) in _BLOCK_LAYERS.items():
            in_flax = f"img/Transformer/encoderblock_{block}/{flax}"
            layers[f"encoder.blocks.{block}.{name}"] = (in_flax, parts)
    for name, (flax, parts) in layers.items():
        is_norm = "norm" in name.rpartition(".")[2]
        for native, leaf in (
            ("weight", "scale") if is_norm else ("kernel", "kernel"),
            ("bias", "bias"),
        ):
            keys = tuple(f"{flax}/{part}/{leaf}" for part in parts) or (f"{flax}/{leaf}",)
            yield _Correspondence(f"{name}.{native}", keys, is_stacked=bool(parts))
    for name, key in _SINGLE_PARAMETERS.items():
        yield _Correspondence(name, (key,), is_stacked=False)
    if has_bias:
        yield _Correspondence(_BIAS, (_FLAX_BIAS,), is_stacked=False)


def read_big_vision(path: str | Path) -> tuple[ClippoConfig, dict[str, Tensor]]:
    """Return the settings, inferred from the arrays, and the weights of a `.npz` checkpoint.

    The file does not say how its text was rendered; the settings say the paper's way, with the
    bundled font. Keys may start with `params/`; optimizer state (`opt/...`) is passed over.

    Raises:
        CheckpointError: if the file is no `.npz`, holds pickled objects, lacks an array, has one
            too many, or one of another shape.
    """
    arrays = _parameters_of(_read_arrays(Path(path)), path)
    try:
        config = _infer_config(arrays)
    except (KeyError, ValueError, IndexError, ClippoError) as error:
        raise CheckpointError(
            f"{path} is not a CLIPPO checkpoint of big_vision: {error}; expected keys such as "
            f"params/img/pos_embedding and params/t, found {sorted(arrays)[:4]}…"
        ) from None
    expected = list(_correspondences(config.vit.depth, has_bias=config.has_logit_bias))
    state = {c.name: _stack(c, arrays, path) for c in expected}
    used = {key for c in expected for key in c.keys}
    if unknown := sorted(set(arrays) - used):
        raise CheckpointError(
            f"{path} holds {len(unknown)} arrays that CLIPPO has no place for: {unknown[:3]}…; "
            "expected one ViT with an attention-pooling head under img/, and t"
        )
    return config, state


def write_big_vision(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write weights as the authors do: `params/...`, sorted by name, not compressed.

    Args:
        path: place of the `.npz` file.
        state: weights as `Clippo.state_dict()` names them.

    Raises:
        CheckpointError: if the weights are a baseline's, whose parameters have other names there.
    """
    if "token_embedding.table" in state:
        raise CheckpointError(
            "big_vision's CLIPPO format has no place for a baseline that reads tokens; convert it "
            "--to native or safetensors"
        )
    arrays = {f"params/{key}": array for key, array in flax_arrays(state).items()}
    np.savez(path, allow_pickle=False, **dict(sorted(arrays.items())))


def flax_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return arrays under the authors' names, made of tensors named as in `Clippo.state_dict()`."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")}
    arrays: dict[str, np.ndarray] = {}
    for c in _correspondences(len(blocks), has_bias=_BIAS in tensors):
        values = tensors[c.name].detach().cpu()
        parts = values.unbind(_part_axis(values)) if c.is_stacked else (values,)
        for key, part in zip(c.keys, parts, strict=True):
            arrays[key] = np.ascontiguousarray(part.numpy())
    return arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: NumPy leaves a file open that is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise CheckpointError(f"{path} is a single array; expected an .npz of many")
            _require_plausible_sizes(file, path)
            return {key: file[key] for key in file.files if not key.startswith("opt/")}
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Checkpoints hold plain arrays; pickled objects are "
            "never loaded, because unpickling runs code"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise CheckpointError(f"{path} is missing, damaged, or no .npz file: {error}") from None


def _require_plausible_sizes(file: np.lib.npyio.NpzFile, path: Path) -> None:
    """Make sure that arrays take no more memory than weights in a file of this size can.

    Raises:
        CheckpointError: if they would.
    """
    most = max(_LARGEST_RATIO * path.stat().st_size, _ALWAYS_ALLOWED_BYTES)
    assert file.zip is not None, "the file is open"
    declared = sum(member.file_size for member in file.zip.infolist())
    for member in file.zip.infolist():
        with file.zip.open(member) as content:
            declared = max(declared, declared_bytes(content))
    if declared > most:
        raise CheckpointError(
            f"{path} says that it holds {declared:,} bytes of arrays, which weights in a file of "
            f"{path.stat().st_size:,} bytes never are: it is damaged, or no checkpoint"
        )


def _parameters_of(arrays: Arrays, path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays without their `params/` prefix as float32; refuse other than floats."""
    prefix = "params/" if any(key.startswith("params/") for key in arrays) else ""
    named = {key.removeprefix(prefix): _as_float32(key, a) for key, a in arrays.items()}
    if not named:
        raise CheckpointError(f"{path} holds no parameters")
    return named


def _as_float32(key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.dtype("V2"):
        # NumPy has no bfloat16: big_vision's come back as two raw bytes, a float32's upper half.
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise CheckpointError(f"array {key} is of {array.dtype}; expected floating-point weights")
    return array.astype(np.float32, copy=False)


def _infer_config(arrays: Arrays) -> ClippoConfig:
    patch, _, channels, width = arrays["img/embedding/kernel"].shape
    num_positions = arrays["img/pos_embedding"].shape[1]
    grid_size = math.isqrt(num_positions)
    if grid_size**2 != num_positions or channels != 3:
        raise ValueError(
            f"{num_positions} positions and {channels} channels are no square RGB canvas"
        )
    blocks = {
        m[1] for key in arrays if (m := re.match(r"img/Transformer/encoderblock_(\d+)/", key))
    }
    attention = "img/MAPHead_0/MultiHeadDotProductAttention_0/query/kernel"
    vit = VitConfig(
        width=width,
        depth=len(blocks),
        mlp_dim=arrays["img/MAPHead_0/MlpBlock_0/Dense_0/kernel"].shape[1],
        num_heads=arrays[attention].shape[1],
        patch_size_px=patch,
        embed_dim=arrays["img/head/kernel"].shape[1],
    )
    render = RenderConfig(image_size_px=grid_size * patch)
    return ClippoConfig(
        vit=vit,
        render=render,
        image=ImageConfig(resize="bilinear"),
        has_logit_bias=_FLAX_BIAS in arrays,
    )


def _stack(correspondence: _Correspondence, arrays: Arrays, path: str | Path) -> Tensor:
    missing = [key for key in correspondence.keys if key not in arrays]
    if missing:
        raise CheckpointError(
            f"{path} lacks the array {missing[0]}, which {correspondence.name} needs"
        )
    parts = [torch.from_numpy(np.array(arrays[key])) for key in correspondence.keys]
    if not correspondence.is_stacked:
        return parts[0]
    try:
        return torch.stack(parts, dim=parts[0].ndim - 2)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: {correspondence.keys} do not fit together: {error}"
        ) from None


def _part_axis(stacked: Tensor) -> int:
    """Return the axis of queries, keys and values, which precedes [head, head_dim]."""
    return stacked.ndim - 3
