"""The patches of canvases that the encoder sees.

Of a photograph these are all, or some that were drawn (FLIP, arXiv:2212.00794); of a text, those
that `ClippoConfig.text_patches` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from clippo_core.config import TextPatches
from clippo_core.modeling.token_groups import TokenGroup, sets_of
from clippo_core.rendering import TextRasters
from clippo_core.transfer import to_device


@dataclass(frozen=True, eq=False)
class PatchSets:
    """Patches of many canvases, one canvas after the other, on the device that encodes them.

    A patch that is left out takes no part: neither in attention nor in pooling.

    Attributes:
        pixels: pixel rows of each patch one after the other; RGB, or one grey channel.
        positions: place of each patch on its canvas, counted row by row.
        lengths: number of patches of each canvas, at least 1; on the host.
    """

    pixels: UInt8[Tensor, "patch pixel_x_channel"]
    positions: Int64[Tensor, " patch"]
    lengths: Int64[np.ndarray, " canvas"]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def group(self) -> TokenGroup:
        """The sets that the patches form, one for each canvas."""
        return sets_of(self.lengths, self.positions.device)

    def part(self, start: int, stop: int) -> PatchSets:
        """Return the canvases from `start` to before `stop`, as views."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        patches = slice(int(ends[start]), int(ends[stop]))
        return PatchSets(self.pixels[patches], self.positions[patches], self.lengths[start:stop])

    @staticmethod
    def concatenate(parts: Sequence[PatchSets]) -> PatchSets:
        """Return the canvases of all parts, which have equally many channels."""
        return PatchSets(
            torch.cat([part.pixels for part in parts]),
            torch.cat([part.positions for part in parts]),
            np.concatenate([part.lengths for part in parts]),
        )


def cut_patches(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"], patch_size_px: int
) -> UInt8[Tensor, "canvas patch_row patch_column y x channel"]:
    """Return canvases cut into patches, as a view."""
    height, width = pixels.shape[1:3]
    rows, columns = height // patch_size_px, width // patch_size_px
    return pixels.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)).transpose(2, 3)


def whole_canvases(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"], patch_size_px: int
) -> PatchSets:
    """Return every patch of each canvas."""
    patches = cut_patches(pixels, patch_size_px).flatten(3).flatten(1, 2)
    num_canvases, num_patches = patches.shape[:2]
    positions = torch.arange(num_patches, device=pixels.device).repeat(num_canvases)
    lengths = np.full(num_canvases, num_patches, np.int64)
    return PatchSets(patches.flatten(0, 1), positions, lengths)


def drawn_patches(
    pixels: UInt8[Tensor, "canvas height_px width_px channel"],
    kept: Int64[Tensor, "canvas kept"],
    patch_size_px: int,
) -> PatchSets:
    """Return only the patches that `kept` names for each canvas."""
    patches = cut_patches(pixels, patch_size_px).flatten(3).flatten(1, 2)
    canvas = torch.arange(len(kept), device=kept.device)[:, None]
    lengths = np.full(len(kept), kept.shape[1], np.int64)
    return PatchSets(patches[canvas, kept].flatten(0, 1), kept.flatten(), lengths)


def text_patches(
    texts: TextRasters, which: TextPatches, *, patch_size_px: int, device: torch.device
) -> PatchSets:
    """Return the patches of texts, drawn on `device`.

    Args:
        texts: rendered texts.
        which: choice of patches, as in `ClippoConfig`.
        patch_size_px: side of a patch.
        device: device to draw on.
    """
    if which == "all":
        return whole_canvases(texts.to_tensor(device).unsqueeze(-1), patch_size_px)
    is_kept = kept_patches(texts, which, patch_size_px)
    text, position = np.nonzero(is_kept)
    side = texts.config.image_size_px // patch_size_px
    row, column = np.divmod(position, side)
    height_px = (int(row.max(initial=0)) + 1) * patch_size_px
    canvases = texts.to_tensor(device, height_px=height_px).unsqueeze(-1)
    # All indices go in one copy.
    places = to_device(np.stack([text, row, column, position]).astype(np.int64), device)
    pixels = cut_patches(canvases, patch_size_px)[tuple(places[:3])].flatten(1)
    return PatchSets(pixels, places[3], is_kept.sum(1))


def kept_patches(
    texts: TextRasters, which: TextPatches, patch_size_px: int
) -> Bool[np.ndarray, "text patch"]:
    """Return for each patch of each text if it takes part; at least one of each text does."""
    side = texts.config.image_size_px // patch_size_px
    if which == "all":
        return np.ones((len(texts), side**2), bool)
    is_kept = texts.inked_patches(patch_size_px)
    is_kept[:, 0, 0] |= ~is_kept.any((1, 2))
    return is_kept.reshape(len(texts), side**2)
