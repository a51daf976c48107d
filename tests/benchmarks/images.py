"""Decoding and resizing of pictures on one core: `python -m tests.benchmarks.images [--quick]`.

640x480 to the canvas of 224 px, beside what a person would write with Pillow. CPU time, so that
other programs hardly disturb it. Floors: what Pillow takes to decode alone.
"""

from __future__ import annotations

import argparse
import io
import time
from typing import cast, get_args, get_type_hints

import numpy as np
from PIL import Image

from clippo_core.config import ImageConfig
from clippo_core.images import decode_image
from tests.benchmarks import report
from tests.benchmarks.photographs import encode, rough

CANVAS_PX = 224
RESIZES = get_args(get_type_hints(ImageConfig)["resize"])
FILES = {
    "JPEG 4:2:0, quality 85": ("JPEG", {"quality": 85, "subsampling": "4:2:0"}),
    "JPEG 4:4:4, quality 90": ("JPEG", {"quality": 90, "subsampling": "4:4:4"}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 80}),
}


def with_pillow(encoded: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(image.resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BILINEAR))


def decode_only(encoded: bytes, *, scaled: bool) -> None:
    image = Image.open(io.BytesIO(encoded))
    if scaled:
        image.draft(None, (CANVAS_PX, CANVAS_PX))
    image.load()


def measure(encoded: bytes, rounds: int) -> dict[str, float]:
    configs = {name: ImageConfig(resize=name) for name in RESIZES}
    seconds = report.seconds_each(
        {
            "pillow": lambda: with_pillow(encoded),
            "floor": lambda: decode_only(encoded, scaled=False),
            "scaled floor": lambda: decode_only(encoded, scaled=True),
        }
        | {
            name: lambda config=config: decode_image(encoded, config, image_size_px=CANVAS_PX)
            for name, config in configs.items()
        },
        rounds=rounds,
        warm_up=3,
        clock=time.process_time,
    )
    expected = with_pillow(encoded).astype(int)
    figures = {f"{name}, ms": 1000 * taken for name, taken in seconds.items()}
    for name, config in configs.items():
        pixels = decode_image(encoded, config, image_size_px=CANVAS_PX)
        difference = np.abs(cast(np.ndarray, pixels).astype(int) - expected)
        figures[f"{name}, times as fast as pillow"] = seconds["pillow"] / seconds[name]
        figures[f"{name}, mean grey levels from pillow"] = float(difference.mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 50 if parser.parse_args().quick else 300
    picture = rough(640, 480)
    figures = {
        name: measure(encode(picture, kind, **options), rounds)
        for name, (kind, options) in FILES.items()
    }
    print(f"{'one core, 640x480 to 224 px':<48}" + "".join(f"{name:>24}" for name in figures))
    for name in next(iter(figures.values())):
        print(f"{name:<48}" + "".join(f"{values[name]:>24,.2f}" for values in figures.values()))
    report.write("images", figures)


if __name__ == "__main__":
    main()
