"""Resizing of position embeddings to another resolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resize_positions(
    positions: Float[Tensor, "1 patch width"], *, grid_size: int
) -> Float[Tensor, "1 resized_patch width"]:
    """Return a square grid of position embeddings, resized linearly with corners aligned.

    Args:
        positions: row-major grid of embeddings.
        grid_size: patches along one side of the new grid.

    Source: big_vision `models/vit.py` resample_posemb (`scipy.ndimage.zoom`, order 1) at 0127fb6;
    equality shown in tests/parity/test_position_embedding_resize.py.
    """
    old_size = math.isqrt(positions.shape[1])
    if old_size == grid_size:
        return positions
    grid = positions.unflatten(1, (old_size, old_size)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(grid_size,) * 2, mode="bilinear", align_corners=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)
