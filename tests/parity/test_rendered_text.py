"""Every rendering of the reference, pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clippo_core.rendering import RenderConfig, TextRenderer

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "rendered_text.json").read_text())
#: The reference's names of settings -> ours.
NAMES = {
    "image_size": "image_size_px",
    "lower": "lowercase",
    "monospace": "monospace",
    "spacing": "spacing_px",
    "min_width": "min_width_px",
    "max_chars": "max_chars",
    "background_brightness": "background",
    "text_brightness": "ink",
}


def expected_pixels(case: dict[str, Any], config: RenderConfig) -> np.ndarray:
    packed = np.load(REFERENCE / "rendered_text.npz")[case["key"]]
    is_ink = np.unpackbits(packed, axis=2, count=config.image_size_px).astype(bool)
    return np.where(is_ink, np.uint8(config.ink), np.uint8(config.background))


def renderer_of(case: dict[str, Any]) -> TextRenderer:
    return TextRenderer(RenderConfig(**{NAMES[k]: v for k, v in case["settings"].items()}))


def test_reference_has_all_557_renderings():
    assert len(CASES) == 9
    assert sum(len(case["texts"]) for case in CASES) == 557


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_every_pixel_equals_the_reference(case: dict[str, Any]):
    renderer = renderer_of(case)
    pixels = renderer.render_batch(case["texts"]).to_pixels()
    np.testing.assert_array_equal(pixels, expected_pixels(case, renderer.config))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_every_pixel_expanded_by_torch_equals_the_reference(case: dict[str, Any]):
    renderer = renderer_of(case)
    pixels = renderer.render_batch(case["texts"]).expand_on("cpu").numpy()
    np.testing.assert_array_equal(pixels, expected_pixels(case, renderer.config))


def test_a_single_text_is_rgb_with_equal_channels():
    renderer = renderer_of(CASES[0])
    image = renderer.render(CASES[0]["texts"][0])
    expected = expected_pixels(CASES[0], renderer.config)[0]
    assert image.shape == (224, 224, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], expected)
