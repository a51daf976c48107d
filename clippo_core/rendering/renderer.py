"""The renderer, which turns texts into rasters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import UInt8

from clippo_core.config import RenderConfig
from clippo_core.errors import RenderError
from clippo_core.rendering.layout import TrimmedGlyphs, set_texts, trim_glyphs
from clippo_core.rendering.raster import TextRasters
from clippo_core.rendering.unifont import GLYPH_PX, GlyphTable, load_font


class TextRenderer:
    """A renderer that draws texts as CLIPPO reads them.

    Any Unicode text renders: characters that the font lacks are blank, bytes that are not UTF-8
    and lone surrogates become U+FFFD, characters past `max_chars` are ignored, and what does not
    fit on the canvas is dropped. Nothing is joined or reordered: Arabic or Devanagari appear as
    separate glyphs in logical order, as in the paper.

    Source: big_vision `render_unifont` at 0127fb6; equality shown in
    tests/parity/test_rendered_text.py.
    """

    def __init__(self, config: RenderConfig | None = None, *, font: GlyphTable | None = None):
        """Prepare the glyphs.

        Args:
            config: settings of the rendering; None is the paper's way.
            font: an already loaded font, instead of reading `config.font`.

        Raises:
            RenderError: if the font cannot be read, or is not the one that the config names.
        """
        config = RenderConfig() if config is None else config
        self.font = load_font(config.font) if font is None else font
        if config.font_sha256 is not None and config.font_sha256 != self.font.sha256:
            raise RenderError(
                f"the config was made with font {config.font_sha256[:12]}…, but "
                f"{config.font or 'the bundled font'} is {self.font.sha256[:12]}…; "
                "pass the font file that it was made with (font=PATH)"
            )
        self.config = dataclasses.replace(config, font=None, font_sha256=self.font.sha256)
        self._glyphs = _trimmed(self.font, self.config)

    def render(self, text: str | bytes) -> UInt8[np.ndarray, "height_px width_px 3"]:
        """Return one text as an RGB image.

        Raises:
            RenderError: if it is neither `str` nor `bytes`.
        """
        grey = self.render_batch([text]).to_pixels()[0]
        return np.repeat(grey[:, :, None], 3, axis=2)

    def render_batch(self, texts: Sequence[str | bytes]) -> TextRasters:
        """Return many texts as rasters, at about ten microseconds each.

        Raises:
            RenderError: if one of them is neither `str` nor `bytes`.
        """
        if isinstance(texts, str | bytes):
            raise RenderError("render_batch takes a list of texts; for a single one use render")
        joined, lengths = _join(texts, self.config.max_chars)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        codepoints = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        size, lowercase = self.config.image_size_px, self.config.lowercase
        row_offsets, rows = set_texts(codepoints, offsets, self._glyphs, size, lowercase)
        return TextRasters(columns=rows, row_offsets=row_offsets, config=self.config)


def _trimmed(font: GlyphTable, config: RenderConfig) -> TrimmedGlyphs:
    if config.monospace:
        first = np.zeros(len(font.columns), np.int32)
        return TrimmedGlyphs.of(font.index, font.columns, first, first + GLYPH_PX)
    spacing, min_width = config.spacing_px, config.min_width_px
    first, end = trim_glyphs(font.columns, spacing_px=spacing, min_width_px=min_width)
    return TrimmedGlyphs.of(font.index, font.columns, first, end)


def _join(texts: Sequence[str | bytes], max_chars: int | None) -> tuple[str, list[int]]:
    """Return all texts as one string, each cut to `max_chars`, and their lengths in characters."""
    # Usually all are strings already; joining is the fastest way to find out.
    strings = cast("Sequence[str]", texts)
    try:
        joined = "".join(strings)
    except TypeError:
        strings = [_decode(text, position) for position, text in enumerate(texts)]
        joined = "".join(strings)
    lengths = list(map(len, strings))
    if max_chars is None or max(lengths, default=0) <= max_chars:
        return joined, lengths
    cut = [text[:max_chars] for text in strings]
    return "".join(cut), list(map(len, cut))


def _decode(text: object, position: int) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", errors="replace")
    if isinstance(text, str):
        return text
    raise RenderError(
        f"text {position} is a {type(text).__name__}; expected str, or bytes in UTF-8"
    )
