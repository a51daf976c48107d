"""Pictures of a run, as RGB arrays; drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

_RIGHT, _WRONG, _PLAIN = (0, 120, 60), (190, 30, 30), (40, 40, 40)
_MARGIN_PX, _LINE_PX, _MIN_TILE_PX = 6, 14, 112


def label_sheet(
    images: UInt8[np.ndarray, "image height_px width_px 3"],
    labels: Sequence[tuple[str, bool | None]],
    *,
    columns: int = 8,
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Pictures in a grid, a line of text under each: green if right, red if wrong, grey if None."""
    scale = max(1, _MIN_TILE_PX // images.shape[1])
    height, width = images.shape[1] * scale, images.shape[2] * scale
    tile_height, tile_width = height + _LINE_PX + 2 * _MARGIN_PX, width + 2 * _MARGIN_PX
    rows = max(-(-len(images) // columns), 1)
    sheet = Image.new("RGB", (columns * tile_width, rows * tile_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, (label, is_right)) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(number, columns)
        x, y = column * tile_width + _MARGIN_PX, row * tile_height + _MARGIN_PX
        sheet.paste(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, y)
        )
        colour = {True: _RIGHT, False: _WRONG, None: _PLAIN}[is_right]
        draw.text((x, y + height + 2), label[: width // 6], fill=colour)
    return np.asarray(sheet)


def pair_sheet(
    images: UInt8[np.ndarray, "pair height_px width_px 3"],
    texts: UInt8[np.ndarray, "pair height_px width_px"],
    captions: Sequence[str],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Training pairs in a grid: the picture, its text as the model sees it, and the caption."""
    pairs = np.concatenate([images, np.repeat(texts[..., None], 3, axis=3)], axis=2)
    return label_sheet(pairs, [(caption, None) for caption in captions], columns=4)
