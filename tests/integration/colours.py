"""A data set that takes no time to make or to learn: noisy patches of four colours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.runtime.storage import Location

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220), "grey": (128,) * 3}


def encoded_picture(colour: tuple[int, ...], seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (24, 24, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def colour_samples(count: int) -> list[RawSample]:
    """Noisy patches of four colours, each with two captions and its class."""
    samples = []
    for number in range(count):
        class_id = number % len(COLOURS)
        name, colour = list(COLOURS.items())[class_id]
        captions = [f"a {name} patch", f"{name} number {number}"]
        samples.append(
            RawSample(f"s{number:04d}", encoded_picture(colour, number), captions, class_id)
        )
    return samples


def write_samples(
    folder: Path, samples: list[RawSample], name: str = "colours", *, rows_per_shard: int = 50
) -> Path:
    writer = ShardWriter(
        Location.of(folder),
        name=name,
        class_names=list(COLOURS),
        rows_per_shard=rows_per_shard,
        row_group_rows=8,
    )
    for sample in samples:
        writer.add(sample)
    writer.close()
    return folder
