"""Pictures with detail at every scale, as photographs have it; no photograph is at hand."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def rough(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Smooth noise of many octaves, each weaker than the one before."""
    picture = np.zeros((height, width, 3))
    generator = np.random.default_rng(seed)
    for octave in range(2, 9):
        noise = generator.normal(0, 60 / 1.7**octave, (2**octave, 2**octave, 3)) + 20
        smooth = [
            Image.fromarray(noise[..., channel].astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for channel in range(3)
        ]
        picture += np.stack(smooth, axis=2)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
