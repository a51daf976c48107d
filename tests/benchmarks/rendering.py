"""Rendering speed on one core: `python -m tests.benchmarks.rendering`.

Beside it Pillow's ImageDraw with Unifont's own OpenType file, on canvases of the same size and
lines of about the same length. The file comes from Debian's package `fonts-unifont`: from where it
is installed, else by `apt-get download`.
"""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clippo_core.rendering import TextRenderer
from pipelines.datasets.prepare.registry.packages import unpack_debian_package
from tests.benchmarks import report

OTF = Path("usr/share/fonts/opentype/unifont/unifont.otf")
SHORT = "a photo of a red car parked near the old town"
LONG = (
    "mixed 日本 и русский العربية हिन्दी with Ελληνικά, 中文, 한국어 and ไทย: "
    "the quick brown fox jumps over the lazy dog, while быстрая лисица бежит по лесу, and "
    "敏捷的棕色狐狸跳过了懒狗. Numbers 0123456789 and signs €£¥½™ follow; "
    "then more English words until the whole text is three hundred characters long, as it is."
)[:300]
CANVAS_RGB_BYTES = 224 * 224 * 3
OURS_PER_ROUND, PILLOW_PER_ROUND = 4096, 64


def draw_with_pillow(texts: list[str], font: ImageFont.FreeTypeFont) -> list[np.ndarray]:
    """What a person would write without this project."""
    images = []
    for text in texts:
        image = Image.new("L", (224, 224), 127)
        lines = "\n".join(textwrap.wrap(text.lower(), 28))
        ImageDraw.Draw(image).multiline_text((0, 0), lines, font=font, fill=0, spacing=0)
        images.append(np.asarray(image))
    return images


def variants(text: str, count: int) -> list[str]:
    """Texts of the same length that are not all equal."""
    return [f"{text[:-4]}{number:04d}" for number in range(count)]


def measure(text: str, renderer: TextRenderer, font: ImageFont.FreeTypeFont) -> dict[str, float]:
    ours, theirs = variants(text, OURS_PER_ROUND), variants(text, PILLOW_PER_ROUND)
    rasters = renderer.render_batch(ours)
    part = renderer.render_batch(ours[:256])
    seconds = report.seconds_each(
        {
            "rasters": lambda: [
                renderer.render_batch(ours[i : i + 256]) for i in range(0, 4096, 256)
            ],
            "numpy_pixels": part.to_pixels,
            "tensor": part.to_tensor,
            "by_torch": lambda: part.expand_on("cpu"),
            "pillow": lambda: draw_with_pillow(theirs, font),
        }
    )
    rate, pillow = OURS_PER_ROUND / seconds["rasters"], PILLOW_PER_ROUND / seconds["pillow"]
    return {
        "characters": len(text),
        "rasters_per_s": rate,
        "pillow_per_s": pillow,
        "ratio": rate / pillow,
        "bytes_per_text": rasters.num_bytes / OURS_PER_ROUND,
        "bytes_as_rgb": CANVAS_RGB_BYTES,
        "numpy_pixels_gb_per_s": 256 * 224**2 / seconds["numpy_pixels"] / 1e9,
        "tensor_gb_per_s": 256 * 224**2 / seconds["tensor"] / 1e9,
        "by_torch_gb_per_s": 256 * 224**2 / seconds["by_torch"] / 1e9,
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        installed = Path("/") / OTF
        if not installed.is_file():
            installed = unpack_debian_package("fonts-unifont", Path(scratch)) / OTF
        font = ImageFont.truetype(str(installed), 16)
        renderer = TextRenderer()
        cases = {"short caption": SHORT, "long mixed scripts": LONG}
        figures = {name: measure(text, renderer, font) for name, text in cases.items()}
    names = list(next(iter(figures.values())))
    print(f"{'one core':<24}" + "".join(f"{case:>22}" for case in figures))
    for name in names:
        print(f"{name:<24}" + "".join(f"{figures[case][name]:>22,.1f}" for case in figures))
    report.write("rendering", figures)


if __name__ == "__main__":
    main()
