"""Resizing of images and of position embeddings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clippo_core.config import ImageConfig
from clippo_core.images import fit_image
from clippo_core.modeling.vit import resize_positions

REFERENCE = Path(__file__).parent / "reference"
BILINEAR = ImageConfig(resize="bilinear")


@pytest.mark.parametrize("number", range(5))
def test_images_are_resized_bit_for_bit(number: int):
    arrays = np.load(REFERENCE / "image_resize.npz")
    ours = fit_image(arrays[f"{number}/image"], BILINEAR, image_size_px=64)
    np.testing.assert_array_equal(ours, arrays[f"{number}/resized"])


@pytest.mark.parametrize("size", [(28, 28), (333, 480), (17, 900), (64, 64), (225, 223)])
def test_any_image_is_resized_as_by_torch_without_antialiasing(size: tuple[int, int]):
    """Up to a grey level in one of 5,000 values of pure noise: torch rounds once where it can fuse
    a product and a sum, TensorFlow, whose formula is used here, twice."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        planes, size=(224, 224), mode="bilinear", align_corners=False, antialias=False
    )
    expected = resized[0].permute(1, 2, 0).to(torch.uint8).numpy()
    ours = fit_image(image, BILINEAR, image_size_px=224)
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1 / 5000


@pytest.mark.parametrize("case", ["4to6", "14to24", "14to28", "6to4"])
def test_position_grids_agree_to_1e_5(case: str):
    arrays = np.load(REFERENCE / "position_embedding_resize.npz")
    expected = arrays[f"{case}/new"]
    grid_size = math.isqrt(expected.shape[1])
    ours = resize_positions(torch.from_numpy(arrays[f"{case}/old"]), grid_size=grid_size)
    assert np.abs(ours.numpy() - expected).max() < 1e-5


def test_a_single_pixel_fills_the_canvas():
    image = np.array([[[200, 3, 255]]], np.uint8)
    np.testing.assert_array_equal(
        fit_image(image, BILINEAR, image_size_px=64), np.broadcast_to(image, (64, 64, 3))
    )
