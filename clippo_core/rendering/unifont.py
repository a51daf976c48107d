"""The glyph table: every glyph of a Unifont-format bitmap font as sixteen pixel columns.

Two file formats are read: Unifont's own text format (`.hex`, `.hex.gz`; one `CODEPOINT:BITMAP`
line per glyph) and the compact form in which the bundled font travels (`.glyphs.xz`).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt16

from clippo_core.errors import RenderError
from clippo_core.npy import declared_bytes

GLYPH_PX = 16
NUM_CODEPOINTS = 0x110000
BUNDLED_FONT = Path(__file__).parent / "assets" / "unifont-15.1.01.glyphs.xz"
#: Most bytes of a font, unpacked: ten times all that Unicode needs.
_MAX_FONT_BYTES = 2**28
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, eq=False)
class GlyphTable:
    """All glyphs of one font.

    Bit `y` of `columns[g, x]` is set where glyph `g` has ink at row `y`, column `x`; an 8 px wide
    glyph leaves its right half empty. Row 0 is the empty glyph, which `index` names for every code
    point that the font lacks. A table pickles to a file name when the font is the bundled one, so
    that it costs nothing to send to a worker.
    """

    codepoints: Int32[np.ndarray, " glyph"]
    columns: UInt16[np.ndarray, "glyph_and_empty 16"]
    index: Int32[np.ndarray, " codepoint"]
    sha256: str
    is_bundled: bool = False

    def __reduce__(self) -> tuple[Callable[..., GlyphTable], tuple[Any, ...]]:
        if self.is_bundled:
            return load_font, (None,)
        return glyph_table, (self.codepoints, self.columns[1:])

    def to_bytes(self) -> bytes:
        """Return the font as the content of a `.glyphs.xz` file."""
        buffer = io.BytesIO()
        np.save(buffer, np.diff(self.codepoints, prepend=np.int32(0)).astype("<i4"))
        np.save(buffer, self.columns[1:].astype("<u2"))
        return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def glyph_table(
    codepoints: Int32[np.ndarray, " glyph"],
    columns: UInt16[np.ndarray, "glyph 16"],
    *,
    is_bundled: bool = False,
) -> GlyphTable:
    """Build the table from ascending code points and the columns of their glyphs."""
    index = np.zeros(NUM_CODEPOINTS, np.int32)
    index[codepoints] = np.arange(1, len(codepoints) + 1, dtype=np.int32)
    with_empty = np.concatenate([np.zeros((1, GLYPH_PX), np.uint16), columns])
    digest = hashlib.sha256(codepoints.astype("<i4").tobytes() + columns.astype("<u2").tobytes())
    return GlyphTable(codepoints, with_empty, index, digest.hexdigest(), is_bundled)


def load_font(path: str | None = None) -> GlyphTable:
    """Return the glyphs of a font file; the bundled font is read once per process.

    Args:
        path: a `.hex`, `.hex.gz` or `.glyphs.xz` file; None is the bundled GNU Unifont 15.1.01.

    Raises:
        RenderError: if the file is missing or not in one of the formats.
    """
    if path is None:
        return _bundled_font()
    try:
        return parse_font(Path(path).read_bytes(), name=path)
    except OSError as error:
        raise RenderError(f"font {path} cannot be read: {error}") from None


@functools.lru_cache(maxsize=1)
def _bundled_font() -> GlyphTable:
    return parse_font(BUNDLED_FONT.read_bytes(), name=BUNDLED_FONT.name, is_bundled=True)


def parse_font(content: bytes, *, name: str, is_bundled: bool = False) -> GlyphTable:
    """Return the font in a file's content; the end of `name` says which format it is.

    Raises:
        RenderError: if it is in none of the formats.
    """
    try:
        if name.endswith(".glyphs.xz"):
            return _parse_compact(content, is_bundled=is_bundled)
        plain = _unzipped(content) if name.endswith(".gz") else content
        return _parse_hex(plain.decode("ascii").splitlines(), name=name)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise RenderError(
            f"font {name} is damaged or no font: {error}; expected a Unifont .hex or .hex.gz file"
        ) from None


def _load_array(buffer: io.BytesIO) -> np.ndarray:
    start = buffer.tell()
    if declared_bytes(buffer) > buffer.getbuffer().nbytes - buffer.tell():
        raise ValueError("an array is cut short")
    buffer.seek(start)
    array = np.load(buffer, allow_pickle=False)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise ValueError(f"an array is of {array.dtype} and shape {array.shape}")
    return array


def _unzipped(content: bytes) -> bytes:
    with gzip.open(io.BytesIO(content)) as file:
        plain = file.read(_MAX_FONT_BYTES + 1)
    if len(plain) > _MAX_FONT_BYTES:
        raise ValueError(f"it is longer than {_MAX_FONT_BYTES} bytes")
    return plain


def _parse_compact(content: bytes, *, is_bundled: bool) -> GlyphTable:
    decompressor = lzma.LZMADecompressor()
    buffer = io.BytesIO(decompressor.decompress(content, _MAX_FONT_BYTES))
    if not decompressor.eof:
        raise EOFError(f"it is cut short, or longer than {_MAX_FONT_BYTES} bytes")
    steps, columns = _load_array(buffer), _load_array(buffer).astype(np.uint16)
    codepoints = np.cumsum(steps, dtype=np.int64).astype(np.int32)
    is_ascending = len(steps) and (steps[1:] > 0).all() and codepoints[0] >= 0
    if not is_ascending or codepoints[-1] >= NUM_CODEPOINTS:
        raise ValueError("its code points do not ascend from 0 to 10FFFF")
    if columns.shape != (len(codepoints), GLYPH_PX):
        raise ValueError(f"its glyphs have the shape {columns.shape}")
    return glyph_table(codepoints, columns, is_bundled=is_bundled)


def _parse_hex(lines: Iterable[str], *, name: str) -> GlyphTable:
    rows: dict[int, UInt16[np.ndarray, "16"]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            codepoint, bitmap = _parse_hex_line(line.strip(), where=f"{name}:{number}")
            rows[codepoint] = bitmap
    if not rows:
        raise RenderError(f"font {name} has no glyphs; expected lines like 0041:0000...")
    codepoints = np.array(sorted(rows), np.int32)
    return glyph_table(codepoints, _columns_of_rows(np.stack([rows[c] for c in codepoints])))


def _parse_hex_line(line: str, *, where: str) -> tuple[int, UInt16[np.ndarray, "16"]]:
    codepoint, _, bitmap = line.partition(":")
    is_hex = bool(codepoint) and _HEX_DIGITS.issuperset(codepoint + bitmap)
    if not is_hex or len(bitmap) not in (32, 64) or int(codepoint, 16) >= NUM_CODEPOINTS:
        raise RenderError(
            f"{where}: {line[:40]!r} is not a glyph; expected CODEPOINT:BITMAP with 32 or 64 "
            "hexadecimal digits of bitmap (8 or 16 px wide, 16 px high)"
        )
    raw = np.frombuffer(bytes.fromhex(bitmap), np.uint8)
    rows = raw.astype(np.uint16) << 8 if len(raw) == GLYPH_PX else raw.view(">u2").astype(np.uint16)
    return int(codepoint, 16), rows


def _columns_of_rows(rows: UInt16[np.ndarray, "glyph 16"]) -> UInt16[np.ndarray, "glyph 16"]:
    """Transpose rows whose top bit is the leftmost pixel into columns whose low bit is on top."""
    shifts = np.arange(GLYPH_PX, dtype=np.uint16)
    pixels = (rows[:, :, None] >> shifts[::-1]) & 1
    return np.bitwise_or.reduce(pixels << shifts[None, :, None], axis=1)
