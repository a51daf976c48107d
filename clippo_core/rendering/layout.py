"""The place of each glyph: trimming, wrapping, and the compiled loop that sets whole texts.

Source of the rules: big_vision `render_unifont` at 0127fb6; equality shown in
tests/parity/test_rendered_text.py. The compiled functions are marked `no_type_check`, so that no
run-time checker wraps what numba has to see.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8, UInt16, UInt32
from numba import njit

from clippo_core.rendering.unifont import GLYPH_PX


class TrimmedGlyphs(NamedTuple):
    """A glyph table without the columns that glyphs do not keep; what the compiled loop reads.

    Attributes:
        by_codepoint: glyph of each code point.
        columns: columns that each glyph keeps, from the left; blank from its advance on.
        advance: advance of each glyph in pixels: the number of columns that it keeps.
        is_inked: True for glyphs that show ink.
    """

    by_codepoint: Int32[np.ndarray, " codepoint"]
    columns: UInt16[np.ndarray, "glyph 16"]
    advance: Int32[np.ndarray, " glyph"]
    is_inked: Bool[np.ndarray, " glyph"]

    @staticmethod
    def of(
        by_codepoint: Int32[np.ndarray, " codepoint"],
        columns: UInt16[np.ndarray, "glyph 16"],
        first: Int32[np.ndarray, " glyph"],
        end: Int32[np.ndarray, " glyph"],
    ) -> TrimmedGlyphs:
        """Return the table in which each glyph keeps its columns from `first` to before `end`."""
        source = first[:, None] + np.arange(GLYPH_PX, dtype=np.int32)
        taken = np.take_along_axis(columns, np.minimum(source, GLYPH_PX - 1), axis=1)
        kept = np.where(source < end[:, None], taken, np.uint16(0))
        return TrimmedGlyphs(by_codepoint, kept, end - first, (kept != 0).sum(axis=1) > 0)


def trim_glyphs(
    columns: UInt16[np.ndarray, "glyph 16"], *, spacing_px: int, min_width_px: int
) -> tuple[Int32[np.ndarray, " glyph"], Int32[np.ndarray, " glyph"]]:
    """Return the first and end column that each glyph keeps when set proportionally.

    A glyph keeps its inked columns and `spacing_px` before them, and is at least `min_width_px`
    wide: `first = max(first inked - spacing, 0)`, `end = max(last inked + spacing,
    first + min_width)`, cut to 16 columns. A glyph without ink counts as inked in column 0.

    Returns:
        `(first, end)` of each glyph, in pixels; its advance is `end - first`.
    """
    inked = columns != 0
    first_inked = np.argmax(inked, axis=1)
    last_inked = np.where(inked.any(axis=1), GLYPH_PX - 1 - np.argmax(inked[:, ::-1], axis=1), 0)
    first = np.maximum(first_inked - spacing_px, 0)
    end = np.minimum(np.maximum(last_inked + spacing_px, first + min_width_px), GLYPH_PX)
    return first.astype(np.int32), end.astype(np.int32)


@njit(cache=True, nogil=True)
@no_type_check
def expand_rows(
    columns: UInt16[np.ndarray, "text_row width_px"],
    text: Int64[np.ndarray, " text_row"],
    row: Int64[np.ndarray, " text_row"],
    background: np.uint8,
    ink: np.uint8,
    pixels: UInt8[np.ndarray, "text height_px width_px"],
) -> None:
    """Write text rows into canvases, each at its place; what would lie below them is left out."""
    change = np.uint16(background ^ ink)
    for i in range(len(columns)):
        top = row[i] * GLYPH_PX
        canvas, bits = pixels[text[i]], columns[i]
        for y in range(min(GLYPH_PX, len(canvas) - top)):
            line = canvas[top + y]
            for x in range(len(bits)):
                line[x] = background ^ (change * ((bits[x] >> y) & 1))


@njit(cache=True, nogil=True)
@no_type_check
def _find_glyphs(
    codepoints: UInt32[np.ndarray, " character"],
    glyphs: TrimmedGlyphs,
    lowercase: bool,
    found: Int32[np.ndarray, " character"],
) -> tuple[int, int]:
    """Write the glyph of each code point to `found`; return the widest advance, and their sum."""
    widest, total = 1, 0
    for i in range(len(codepoints)):
        codepoint = codepoints[i]
        if lowercase and 65 <= codepoint <= 90:
            codepoint += 32
        elif 0xD800 <= codepoint <= 0xDFFF:
            # A lone surrogate is no character: drawn as U+FFFD, as invalid UTF-8 is.
            codepoint = 0xFFFD
        glyph = glyphs.by_codepoint[codepoint]
        found[i] = glyph
        widest = max(widest, glyphs.advance[glyph])
        total += glyphs.advance[glyph]
    return widest, total


@njit(cache=True, nogil=True)
@no_type_check
def _draw(
    found: Int32[np.ndarray, " character"],
    glyphs: TrimmedGlyphs,
    usable_px: int,
    max_rows: int,
    rows: UInt16[np.ndarray, "text_row width_px"],
    first_row: int,
) -> int:
    """Copy the glyphs' columns into blank `rows`; return the rows up to the last inked one.

    Whole glyphs are copied, as one move of 32 bytes: of each only its advance stays, since the next
    one is written over its blank rest, or that rest lies at the beginning of a row to come.
    """
    pixels, width_px = rows.reshape(-1), rows.shape[1]
    at, row, row_ends_at, num_inked = first_row * width_px, 0, usable_px, 0
    advance = 0
    for i in range(len(found)):
        glyph = found[i]
        advance += glyphs.advance[glyph]
        if advance >= row_ends_at:
            while advance >= row_ends_at:
                row, row_ends_at = row + 1, row_ends_at + usable_px
            if row >= max_rows:
                break
            at = (first_row + row) * width_px
        for column in range(GLYPH_PX):
            pixels[at + column] = glyphs.columns[glyph, column]
        at += glyphs.advance[glyph]
        if glyphs.is_inked[glyph]:
            num_inked = row + 1
    return num_inked


@njit(cache=True, nogil=True)
@no_type_check
def set_texts(
    codepoints: UInt32[np.ndarray, " character"],
    text_offsets: Int64[np.ndarray, " text_and_1"],
    glyphs: TrimmedGlyphs,
    canvas_px: int,
    lowercase: bool,
) -> tuple[Int32[np.ndarray, " text_and_1"], UInt16[np.ndarray, "text_row width_px"]]:
    """Return the rows of many texts, each on a canvas of its own.

    Glyphs go left to right and top to bottom: one sits in row
    `floor(advance summed up to and including it / usable width)`; the usable width is the canvas
    less the widest glyph of its text. Rows that do not fit on the canvas are dropped. The reference
    divides in float32, which for sums below 2^23 px has the same floor as the integer division used
    here.

    Args:
        codepoints: all texts one after the other.
        text_offsets: first character of each text, and the end of the last text.
        glyphs: the glyph table and what each glyph keeps of its columns.
        canvas_px: side of the square canvas, in pixels.
        lowercase: draw A-Z as a-z.

    Returns:
        Offsets of each text's rows, and the rows: for each text those up to its last inked one.
    """
    num_texts, max_rows = len(text_offsets) - 1, canvas_px // GLYPH_PX
    found, usable_px = np.empty(len(codepoints), np.int32), np.empty(num_texts, np.int64)
    # One row more than there can be, for the blank rest of the last glyph.
    num_rows = 1
    for text in range(num_texts):
        part = slice(text_offsets[text], text_offsets[text + 1])
        widest, total = _find_glyphs(codepoints[part], glyphs, lowercase, found[part])
        usable_px[text] = canvas_px - widest
        num_rows += min(total // usable_px[text] + 1, max_rows)
    rows = np.zeros((num_rows, canvas_px), np.uint16)
    row_offsets = np.zeros(num_texts + 1, np.int32)
    for text in range(num_texts):
        part, used = slice(text_offsets[text], text_offsets[text + 1]), row_offsets[text]
        num_inked = _draw(found[part], glyphs, usable_px[text], max_rows, rows, used)
        row_offsets[text + 1] = used + num_inked
    return row_offsets, rows[: row_offsets[num_texts]]
