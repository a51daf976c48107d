"""Which patches of a canvas the encoder sees, and in what order.

Photographs: all of them, or some that were drawn (FLIP, arXiv:2212.00794). Texts: as
`ClippoConfig.text_patches` says.
"""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from clippo_core.config import TextPatches
from clippo_core.modeling.layers import TokenGroup
from clippo_core.rendering import TextRasters

#: On an accelerator, sets are padded to a multiple of so many patches: fewer, larger kernels.
ACCELERATOR_SET_MULTIPLE = 8


@dataclass(frozen=True)
class PatchSets:
    """Patches of many canvases, one canvas after the other, those with equally many together.

    What is not there takes no part: neither in attention nor in pooling.

    Attributes:
        pixels: of each patch: its rows one after the other; RGB, or one grey channel.
        positions: where each patch stands on its canvas, row by row.
        groups: how many of the patches belong together.
        places: where each canvas's set stands among the sets; None where in the given order.
    """

    pixels: UInt8[Tensor, "patch pixel_x_channel"]
    positions: Int64[Tensor, " patch"]
    groups: Sequence[TokenGroup]
    places: Int64[Tensor, " canvas"] | None = None

    def in_order(self, of_sets: Float[Tensor, "set feature"]) -> Float[Tensor, "canvas feature"]:
        """Rows for the sets, as rows for the canvases in the order that they were given in."""
        return of_sets if self.places is None else of_sets[self.places]


def cut_patches(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"], patch_size_px: int
) -> UInt8[Tensor, "canvas patch_row patch_column y x channel"]:
    """Cut canvases into patches; a view."""
    height, width = pixels.shape[1:3]
    rows, columns = height // patch_size_px, width // patch_size_px
    return pixels.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)).transpose(2, 3)


def whole_canvases(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"], patch_size_px: int
) -> PatchSets:
    """Every patch."""
    patches = cut_patches(pixels, patch_size_px).flatten(3).flatten(1, 2)
    num_canvases, num_patches = patches.shape[:2]
    positions = torch.arange(num_patches, device=pixels.device).repeat(num_canvases)
    return PatchSets(patches.flatten(0, 1), positions, [TokenGroup(num_canvases, num_patches)])


def drawn_patches(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"],
    kept: Int64[Tensor, "canvas kept"],
    patch_size_px: int,
) -> PatchSets:
    """Only the patches that `kept` names for each canvas."""
    patches = cut_patches(pixels, patch_size_px).flatten(3).flatten(1, 2)
    canvas = torch.arange(len(kept), device=kept.device)[:, None]
    return PatchSets(
        patches[canvas, kept].flatten(0, 1),
        kept.flatten(),
        [TokenGroup(kept.shape[0], kept.shape[1])],
    )


def text_patches(
    texts: TextRasters,
    which: TextPatches,
    *,
    patch_size_px: int,
    device: torch.device,
    set_multiple: int | None = None,
) -> PatchSets:
    """The patches of texts, drawn on `device`.

    Args:
        texts: rendered.
        which: as in `ClippoConfig`.
        patch_size_px: side of a patch.
        device: where to draw.
        set_multiple: sets are padded to a multiple of so many patches, which take no part; None:
            1 on a CPU, 8 elsewhere.
    """
    if which == "all":
        return whole_canvases(texts.to_tensor(device).unsqueeze(-1), patch_size_px)
    if set_multiple is None:
        set_multiple = 1 if device.type == "cpu" else ACCELERATOR_SET_MULTIPLE
    is_kept = kept_patches(texts, which, patch_size_px)
    lengths = is_kept.sum(1)
    padded = np.minimum(-(-lengths // set_multiple) * set_multiple, is_kept.shape[1])
    # Kept ones first, each kind in the canvas's order; what pads a set is blank canvas.
    ranked = np.argsort(~is_kept, axis=1, kind="stable")
    groups: list[TokenGroup] = []
    chosen: list[tuple[np.ndarray, np.ndarray]] = []
    for length in np.unique(padded).tolist():
        members = np.flatnonzero(padded == length)
        is_token = np.arange(length) < lengths[members, None]
        mask = None if is_token.all() else torch.from_numpy(is_token).to(device)
        groups.append(TokenGroup(len(members), length, mask, size_varies=True))
        chosen.append((np.repeat(members, length), ranked[members, :length].ravel()))
    text, position = (np.concatenate(column) for column in zip(*chosen, strict=True))
    places = np.argsort(np.argsort(padded, kind="stable"), kind="stable")
    pixels = _pixels_of(texts, text, position, patch_size_px=patch_size_px, device=device)
    return PatchSets(
        pixels,
        torch.from_numpy(position).to(device),
        groups,
        torch.from_numpy(places).to(device),
    )


def kept_patches(
    texts: TextRasters, which: TextPatches, patch_size_px: int
) -> Bool[np.ndarray, "text patch"]:
    """Which patches of each text take part; at least one of each."""
    side = texts.config.image_size_px // patch_size_px
    if which == "all":
        return np.ones((len(texts), side**2), bool)
    is_kept = texts.inked_patches(patch_size_px)
    is_kept[:, 0, 0] |= ~is_kept.any((1, 2))
    return is_kept.reshape(len(texts), side**2)


def _pixels_of(
    texts: TextRasters,
    text: Int64[np.ndarray, " patch"],
    position: Int64[np.ndarray, " patch"],
    *,
    patch_size_px: int,
    device: torch.device,
) -> UInt8[Tensor, "patch pixel"]:
    side = texts.config.image_size_px // patch_size_px
    row, column = np.divmod(position, side)
    height_px = (int(row.max(initial=0)) + 1) * patch_size_px
    canvases = texts.to_tensor(device, height_px=height_px).unsqueeze(-1)
    index = (torch.from_numpy(i).to(device) for i in (text, row, column))
    return cut_patches(canvases, patch_size_px)[tuple(index)].flatten(1)
