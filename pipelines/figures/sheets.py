"""Pictures of a run, as RGB arrays. Captions are drawn in Unifont, so that any script shows."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from clippo_core.config import RenderConfig
from clippo_core.rendering import TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX, GlyphTable, load_font

Colour = tuple[int, int, int]
Picture = UInt8[np.ndarray, "height_px width_px 3"]
Pictures = UInt8[np.ndarray, "picture height_px width_px 3"]
Greys = UInt8[np.ndarray, "picture height_px width_px"]
_RIGHT, _WRONG, _PLAIN = (0, 120, 60), (190, 30, 30), (40, 40, 40)
_MARGIN_PX, _FRAME_PX, _MIN_TILE_PX = 6, 3, 112
_CAPTION_ROWS = 2
#: From none to most: white, light blue, blue, dark blue.
_SHADES = np.array([(255, 255, 255), (158, 202, 225), (49, 130, 189), (8, 40, 90)], float)
#: Classes of a confusion matrix that still fit on a screen.
MAX_CLASSES = 40
_LABEL_PX = 176


def encode_pngs(pictures: Mapping[str, Picture]) -> dict[str, bytes]:
    """Pictures as PNG files."""
    encoded = {}
    for name, pixels in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded[name] = buffer.getvalue()
    return encoded


def grey_to_rgb(grey: Greys) -> Pictures:
    """Three equal channels."""
    return np.repeat(grey[..., None], 3, axis=3)


def captions(
    texts: Sequence[str], *, width_px: int, rows: int = 1, colour: Colour = _PLAIN
) -> Pictures:
    """Texts of any script on white, wrapped; what does not fit into the rows is cut off."""
    rasters = _renderer(max(width_px, 2 * GLYPH_PX)).render_batch(list(texts))
    inked = rasters.to_pixels(height_px=rows * GLYPH_PX)[..., :width_px, None] == 0
    return np.where(inked, np.array(colour, np.uint8), np.uint8(255))


@functools.lru_cache(maxsize=16)
def _renderer(width_px: int) -> TextRenderer:
    config = RenderConfig(
        image_size_px=width_px, lowercase=False, background=255, ink=0, max_chars=None
    )
    return TextRenderer(config, font=_bundled_font())


@functools.cache
def _bundled_font() -> GlyphTable:
    return load_font()


def label_sheet(
    images: Pictures, labels: Sequence[tuple[str, bool | None]], *, columns: int = 8
) -> Picture:
    """Pictures in a grid, captions under them: green if right, red if wrong, grey if None."""
    tiles = _enlarge(images)
    frames = [_framed(tile, is_right) for tile, (_, is_right) in zip(tiles, labels, strict=True)]
    width = frames[0].shape[1] if frames else _MIN_TILE_PX
    strips = [
        captions([text], width_px=width, rows=_CAPTION_ROWS, colour=_colour(is_right))[0]
        for text, is_right in labels
    ]
    return _grid([_stack([f, s]) for f, s in zip(frames, strips, strict=True)], columns)


def pair_sheet(images: Pictures, texts: Greys, labels: Sequence[str]) -> Picture:
    """Training pairs in a grid: the left side, its text as the model sees it, and a label."""
    pairs = np.concatenate([images, grey_to_rgb(texts)], axis=2)
    return label_sheet(pairs, [(label, None) for label in labels], columns=4)


def similarity_matrix(
    lefts: Pictures, texts: Greys, similarity: Float[np.ndarray, "pair pair"], *, title: str
) -> Picture:
    """Cosine of every left side (rows) and every text (columns) of a batch; pairs lie diagonally.

    At the left the left sides, at the right the first row of the text of the same pair.
    """
    cell_px = GLYPH_PX + 6
    low, high = float(similarity.min()), float(similarity.max())
    cells = _shaded((similarity - low) / max(high - low, 1e-9), cell_px)
    for number in range(len(similarity)):
        square = slice(number * cell_px, (number + 1) * cell_px)
        _draw_frame(cells[square, square], _RIGHT, 1)
    thumbnails = [
        np.asarray(Image.fromarray(left).resize((cell_px - 2, cell_px - 2))) for left in lefts
    ]
    left_bar = _stack([_padded(t, height=cell_px, width=cell_px + 2) for t in thumbnails])
    lines = [
        _padded(text[:GLYPH_PX], height=cell_px, width=text.shape[1] + 4)
        for text in grey_to_rgb(texts)
    ]
    body = _beside([left_bar, cells, _stack(lines)])
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
    """A query in each row and the pictures nearest to it, best first; right ones framed green."""
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
    """How often each class (rows) was taken for each (columns), shaded by the share of its row.

    Of more than `MAX_CLASSES` classes those with the most mistakes are shown.
    """
    mistakes = counts.sum(1) - counts.diagonal()
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])
    if len(shown) < len(names):
        title = f"{title} (the {len(shown)} classes with the most mistakes, of {len(names)})"
    shares = counts[np.ix_(shown, shown)] / np.maximum(counts[shown].sum(1, keepdims=True), 1)
    cell_px = 44 if len(shown) <= 20 else 22
    cells = _shaded(shares, cell_px)
    if cell_px == 44:
        _write_numbers(cells, counts[np.ix_(shown, shown)], shares, cell_px)
    shown_names = [names[int(number)] for number in shown]
    labels = captions(shown_names, width_px=_LABEL_PX)
    rows = [_padded(label, height=cell_px, width=_LABEL_PX) for label in labels]
    columns = [np.rot90(_padded(label, height=cell_px, width=_LABEL_PX)) for label in labels]
    body = _stack([_padded(_beside(columns), left=_LABEL_PX), _beside([_stack(rows), cells])])
    return _titled(body, title)


def _write_numbers(
    cells: Picture,
    counts: Int[np.ndarray, "row column"],
    shares: Float[np.ndarray, "row column"],
    cell_px: int,
) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = (255, 255, 255) if shares[row, column] > 0.5 else (0, 0, 0)
        number = str(counts[row, column])
        (text,) = captions([number], width_px=cell_px - 4, colour=(1, 1, 1))
        inked = text[..., 0] == 1
        top, left = row * cell_px + (cell_px - GLYPH_PX) // 2, column * cell_px + 4
        cells[top : top + GLYPH_PX, left : left + text.shape[1]][inked] = colour


def _shaded(values: Float[np.ndarray, "row column"], cell_px: int) -> Picture:
    """A square for each value of 0 to 1."""
    place = np.clip(values, 0, 1) * (len(_SHADES) - 1)
    colours = [np.interp(place, range(len(_SHADES)), _SHADES[:, channel]) for channel in range(3)]
    pixels = np.stack(colours, axis=-1).round().astype(np.uint8)
    return pixels.repeat(cell_px, axis=0).repeat(cell_px, axis=1)


def _enlarge(images: Pictures) -> Pictures:
    """By a whole number, so that pixels stay pixels, until a person can see them."""
    scale = max(1, -(-_MIN_TILE_PX // images.shape[1]))
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def _colour(is_right: bool | None) -> Colour:
    return {True: _RIGHT, False: _WRONG, None: _PLAIN}[is_right]


def _framed(tile: Picture, is_right: bool | None) -> Picture:
    height, width = tile.shape[:2]
    framed = _padded(
        tile, height=height + 2 * _FRAME_PX, width=width + 2 * _FRAME_PX, left=_FRAME_PX
    )
    if is_right is not None:
        _draw_frame(framed, _colour(is_right), _FRAME_PX)
    return framed


def _draw_frame(picture: Picture, colour: Colour, thickness_px: int) -> None:
    for edge in (slice(None, thickness_px), slice(-thickness_px, None)):
        picture[edge] = colour
        picture[:, edge] = colour


def _titled(body: Picture, title: str) -> Picture:
    (line,) = captions([title], width_px=max(body.shape[1], 320), rows=2, colour=(0, 0, 0))
    return _stack([line, body])


def _grid(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles row by row, with a margin around each."""
    spaced = [
        _padded(tile, height=tile.shape[0] + _MARGIN_PX, width=tile.shape[1] + _MARGIN_PX)
        for tile in tiles
    ] or [np.full((_MIN_TILE_PX, _MIN_TILE_PX, 3), 255, np.uint8)]
    rows = [spaced[start : start + columns] for start in range(0, len(spaced), columns)]
    return _stack([_beside(row) for row in rows])


def _padded(
    picture: Picture, *, height: int | None = None, width: int | None = None, left: int = 0
) -> Picture:
    """White around a picture, which is in the middle vertically, and `left` px from the left."""
    height_px = picture.shape[0] if height is None else height
    width_px = max(width or 0, picture.shape[1] + left)
    canvas = np.full((height_px, width_px, 3), 255, np.uint8)
    top = (height_px - picture.shape[0]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _stack(pictures: Sequence[Picture]) -> Picture:
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([_padded(picture, width=width) for picture in pictures])


def _beside(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    return np.concatenate([_padded(picture, height=height) for picture in pictures], axis=1)
