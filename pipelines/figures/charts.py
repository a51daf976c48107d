"""Charts of evaluations, as RGB arrays: points in a plane, and bars."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import numpy as np
from jaxtyping import Float

from clippo_core.rendering.unifont import GLYPH_PX
from pipelines.figures.sheets import Picture, captions

#: Blue, orange, green, purple and grey, which people who are colour-blind can tell apart.
COLOURS = ((49, 130, 189), (230, 120, 20), (0, 140, 110), (130, 90, 170), (120, 120, 120))
_AXIS = (200, 200, 200)
_SCATTER_PX, _DOT_PX = 480, 3
_BAR_PX, _BARS_WIDTH_PX, _NAME_PX, _NUMBER_PX = 9, 480, 96, 72
_MARGIN_PX = 12


def scatter(groups: Mapping[str, Float[np.ndarray, "point 2"]], *, title: str) -> Picture:
    """Draw points in a plane, a colour for each group; both axes have the same scale."""
    points = np.concatenate(list(groups.values()))
    centre = (points.max(axis=0) + points.min(axis=0)) / 2
    scale = (_SCATTER_PX - 4 * _DOT_PX) / max(float(np.ptp(points, axis=0).max()), 1e-9)
    plane = np.full((_SCATTER_PX, _SCATTER_PX, 3), 255, np.uint8)
    plane[[0, -1]] = plane[:, [0, -1]] = _AXIS
    # Groups take turns, so that none hides another.
    for turn in zip_longest(*groups.values()):
        for point, colour in zip(turn, COLOURS, strict=False):
            if point is not None:
                across, up = (point - centre) * scale
                row, column = round(_SCATTER_PX / 2 - up), round(_SCATTER_PX / 2 + across)
                plane[row - 1 : row + _DOT_PX - 1, column - 1 : column + _DOT_PX - 1] = colour
    return _chart(title, list(groups), [plane])


def bars(rows: Mapping[str, Mapping[str, float]], *, title: str) -> Picture:
    """Draw a bar for each number of each row; all rows name the same numbers."""
    largest = max(value for row in rows.values() for value in row.values()) or 1.0
    width = _NAME_PX + _BARS_WIDTH_PX + _NUMBER_PX
    strips = []
    for name, row in rows.items():
        height = max(len(row) * _BAR_PX, GLYPH_PX) + 6
        middle = (height - GLYPH_PX) // 2
        strip = np.full((height, width, 3), 255, np.uint8)
        _write(strip, name, top=middle, left=0, width=_NAME_PX - 6)
        for number, (value, colour) in enumerate(zip(row.values(), COLOURS, strict=False)):
            top = 3 + number * _BAR_PX
            length = max(round(value / largest * _BARS_WIDTH_PX), 1)
            strip[top : top + _BAR_PX - 1, _NAME_PX : _NAME_PX + length] = colour
        longest = max(row.values())
        end = _NAME_PX + round(longest / largest * _BARS_WIDTH_PX) + 6
        _write(strip, f"{longest:.4g}", top=middle, left=end, width=_NUMBER_PX - 6)
        strips.append(strip)
    return _chart(title, list(next(iter(rows.values()))), strips)


def _chart(title: str, names: list[str], parts: list[Picture]) -> Picture:
    """Put a title and a legend above a chart: each name behind a square of its colour."""
    width_px = parts[0].shape[1]
    (line,) = captions([title], width_px=width_px, rows=2, colour=(0, 0, 0))
    legend = np.full((GLYPH_PX + 8, width_px, 3), 255, np.uint8)
    room = width_px // len(names)
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        left = number * room
        legend[4 : 4 + GLYPH_PX - 4, left : left + GLYPH_PX - 4] = colour
        _write(legend, name, top=2, left=left + GLYPH_PX, width=room - GLYPH_PX - 4)
    margins = ((_MARGIN_PX, _MARGIN_PX), (_MARGIN_PX, _MARGIN_PX), (0, 0))
    return np.pad(np.concatenate([line, legend, *parts]), margins, constant_values=255)


def _write(canvas: Picture, text: str, *, top: int, left: int, width: int) -> None:
    width = min(width, canvas.shape[1] - left)
    if width > 0:
        canvas[top : top + GLYPH_PX, left : left + width] = captions([text], width_px=width)[0]
