"""Sheets of pictures, as RGB arrays; captions are drawn in Unifont, so that any script shows."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from clippo_core.config import RenderConfig
from clippo_core.rendering import TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX

Colour = tuple[int, int, int]
Picture = UInt8[np.ndarray, "height_px width_px 3"]
Pictures = UInt8[np.ndarray, "picture height_px width_px 3"]
Greys = UInt8[np.ndarray, "picture height_px width_px"]
_PLAIN = (40, 40, 40)
_COLOUR_OF = {True: (0, 120, 60), False: (190, 30, 30), None: _PLAIN}
_MARGIN_PX, _FRAME_PX, _MIN_TILE_PX = 6, 3, 112
_CAPTION_ROWS = 2
#: Colours from the lowest to the highest value: white, light blue, blue, dark blue.
_SHADES = np.array([(255, 255, 255), (158, 202, 225), (49, 130, 189), (8, 40, 90)], float)
#: Most classes of a confusion matrix, so that it fits on a screen.
MAX_CLASSES = 40
_LABEL_PX = 176


def encode_pngs(pictures: Mapping[str, Picture]) -> dict[str, bytes]:
    """Encode pictures as PNG files, by the same names."""
    encoded = {}
    for name, pixels in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded[name] = buffer.getvalue()
    return encoded


def grey_to_rgb(grey: Greys) -> Pictures:
    """Return grey pictures as colour pictures of three equal channels."""
    return np.repeat(grey[..., None], 3, axis=3)


def captions(
    texts: Sequence[str], *, width_px: int, rows: int = 1, colour: Colour = _PLAIN
) -> Pictures:
    """Draw texts of any script on white, wrapped; what does not fit into the rows is cut off."""
    inked = _inked(texts, width_px, rows)[..., None]
    return np.where(inked, np.array(colour, np.uint8), np.uint8(255))


def _inked(
    texts: Sequence[str], width_px: int, rows: int
) -> Bool[np.ndarray, "picture height_px width_px"]:
    rasters = _renderer(max(width_px, 2 * GLYPH_PX)).render_batch(list(texts))
    return rasters.to_pixels(height_px=rows * GLYPH_PX)[..., :width_px] == 0


@functools.lru_cache(maxsize=16)
def _renderer(width_px: int) -> TextRenderer:
    return TextRenderer(
        RenderConfig(image_size_px=width_px, lowercase=False, background=255, ink=0, max_chars=None)
    )


def label_sheet(
    images: Pictures, labels: Sequence[tuple[str, bool | None]], *, columns: int = 8
) -> Picture:
    """Lay pictures out in a grid, captions below: green if right, red if wrong, grey if None."""
    # Enlarged by a whole number, so that pixels stay square.
    scale = max(1, -(-_MIN_TILE_PX // images.shape[1]))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    cells: list[Picture] = []
    for tile, (text, is_right) in zip(tiles, labels, strict=True):
        colour, width = _COLOUR_OF[is_right], tile.shape[1] + 2 * _FRAME_PX
        frame = _padded(tile, height=tile.shape[0] + 2 * _FRAME_PX, width=width, left=_FRAME_PX)
        if is_right is not None:
            _draw_frame(frame, colour, _FRAME_PX)
        below = captions([text], width_px=width, rows=_CAPTION_ROWS, colour=colour)[0]
        cell = _stack([frame, below])
        cells.append(_padded(cell, height=cell.shape[0] + _MARGIN_PX, width=width + _MARGIN_PX))
    cells = cells or [np.full((_MIN_TILE_PX, _MIN_TILE_PX, 3), 255, np.uint8)]
    return _stack([_beside(cells[at : at + columns]) for at in range(0, len(cells), columns)])


def pair_sheet(images: Pictures, texts: Greys, labels: Sequence[str]) -> Picture:
    """Lay training pairs out in a grid: left side, text as the model sees it, and a label."""
    pairs = np.concatenate([images, grey_to_rgb(texts)], axis=2)
    return label_sheet(pairs, [(label, None) for label in labels], columns=4)


def similarity_matrix(
    lefts: Pictures, texts: Greys, similarity: Float[np.ndarray, "pair pair"], *, title: str
) -> Picture:
    """Shade the cosine of every left side (rows) and text (columns) of a batch.

    Pairs lie on the diagonal. The left sides are shown at the left, and the first row of the text
    of the same pair at the right.
    """
    cell_px = GLYPH_PX + 6
    low, high = float(similarity.min()), float(similarity.max())
    cells = _shaded((similarity - low) / max(high - low, 1e-9), cell_px)
    for number in range(len(similarity)):
        square = slice(number * cell_px, (number + 1) * cell_px)
        _draw_frame(cells[square, square], _COLOUR_OF[True], 1)
    small = (cell_px - 2, cell_px - 2)
    thumbnails = [np.asarray(Image.fromarray(left).resize(small)) for left in lefts]
    lines = [text[:GLYPH_PX] for text in grey_to_rgb(texts)]
    body = _beside([_column(thumbnails, cell_px, cell_px + 2), cells, _column(lines, cell_px)])
    scale = f"{title}: cosine from {low:.2f} (white) to {high:.2f} (dark); green: the pairs"
    return _titled(body, scale)


def gallery(
    queries: Sequence[str],
    found: UInt8[np.ndarray, "query rank height_px width_px 3"],
    is_right: Bool[np.ndarray, "query rank"],
    similarity: Float[np.ndarray, "query rank"],
    *,
    title: str,
) -> Picture:
    """Show in each row a query and the pictures nearest to it, best first, right ones green."""
    rows = []
    for query, pictures, right, cosine in zip(queries, found, is_right, similarity, strict=True):
        labels = [(f"{value:.2f}", bool(ok)) for value, ok in zip(cosine, right, strict=True)]
        sheet = label_sheet(pictures, labels, columns=len(pictures))
        lines = sheet.shape[0] // GLYPH_PX - 1
        (text,) = captions([query], width_px=240, rows=lines, colour=(0, 0, 0))
        rows.append(_beside([_padded(text, height=sheet.shape[0], width=250), sheet]))
    return _titled(_stack(rows), title)


def confusion_matrix(
    counts: Int[np.ndarray, "label prediction"], names: Sequence[str], *, title: str
) -> Picture:
    """Show how often each class (row) was taken for each (column), shaded by the row's shares.

    Where there are more than `MAX_CLASSES` classes, those with the most mistakes are shown.
    """
    mistakes = counts.sum(1) - counts.diagonal()
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])
    if len(shown) < len(names):
        title = f"{title} (the {len(shown)} classes with the most mistakes, of {len(names)})"
    inside = counts[np.ix_(shown, shown)]
    shares = inside / np.maximum(counts[shown].sum(1, keepdims=True), 1)
    cell_px = 44 if len(shown) <= 20 else 22
    cells = _shaded(shares, cell_px)
    for row, column in np.argwhere(inside) if cell_px == 44 else ():
        (inked,) = _inked([str(inside[row, column])], cell_px - 4, 1)
        top, left = row * cell_px + (cell_px - GLYPH_PX) // 2, column * cell_px + 4
        shade = 255 if shares[row, column] > 0.5 else 0
        cells[top : top + GLYPH_PX, left : left + cell_px - 4][inked] = shade
    labels = captions([names[int(number)] for number in shown], width_px=_LABEL_PX)
    rows = _column(labels, cell_px, _LABEL_PX)
    columns = _padded(np.rot90(rows), left=_LABEL_PX)
    return _titled(_stack([columns, _beside([rows, cells])]), title)


def _shaded(values: Float[np.ndarray, "row column"], cell_px: int) -> Picture:
    """Draw a square for each value, which is 0 to 1."""
    place = np.clip(values, 0, 1) * (len(_SHADES) - 1)
    colours = [np.interp(place, range(len(_SHADES)), _SHADES[:, channel]) for channel in range(3)]
    pixels = np.stack(colours, axis=-1).round().astype(np.uint8)
    return pixels.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def _draw_frame(picture: Picture, colour: Colour, thickness_px: int) -> None:
    for edge in (slice(None, thickness_px), slice(-thickness_px, None)):
        picture[edge] = colour
        picture[:, edge] = colour


def _titled(body: Picture, title: str) -> Picture:
    (line,) = captions([title], width_px=max(body.shape[1], 320), rows=2, colour=(0, 0, 0))
    return _stack([line, body])


def _column(pictures: Iterable[Picture], height_px: int, width_px: int | None = None) -> Picture:
    """Stack pictures, each in the middle of such a height; 4 px to the right by default."""
    return _stack(
        [_padded(p, height=height_px, width=width_px or p.shape[1] + 4) for p in pictures]
    )


def _padded(picture: Picture, *, height: int = 0, width: int = 0, left: int = 0) -> Picture:
    """Put white around a picture, which is centred vertically and `left` px from the left."""
    below = max(height - picture.shape[0], 0)
    right = max(width - picture.shape[1] - left, 0)
    margins = ((below // 2, below - below // 2), (left, right), (0, 0))
    return np.pad(picture, margins, constant_values=255)


def _stack(pictures: Sequence[Picture]) -> Picture:
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([_padded(picture, width=width) for picture in pictures])


def _beside(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    return np.concatenate([_padded(picture, height=height) for picture in pictures], axis=1)
