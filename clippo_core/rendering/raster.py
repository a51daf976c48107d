"""Rendered texts in one bit per pixel, as they travel from workers to devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt16

from clippo_core.config import RenderConfig
from clippo_core.errors import RenderError
from clippo_core.rendering.layout import expand_rows
from clippo_core.rendering.unifont import GLYPH_PX

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class TextRasters:
    """A batch of rendered texts.

    A text consists of the text rows (16 px high) up to its last inked one; a row is one uint16 per
    pixel column, whose bit `y` is the pixel `y` rows down. Everything below is background.

    Attributes:
        columns: rows of all texts, one text after the other.
        row_offsets: first row of each text, and the end of the last text.
        config: settings of the rendering; `font_sha256` is set.
    """

    columns: UInt16[np.ndarray, "text_row width_px"]
    row_offsets: Int32[np.ndarray, " text_and_1"]
    config: RenderConfig

    def __post_init__(self) -> None:
        width, num_rows = self.config.image_size_px, int(self.row_offsets[-1])
        if self.columns.shape != (num_rows, width) or self.row_offsets[0] != 0:
            raise RenderError(
                f"rasters hold {self.columns.shape} columns, but their offsets and config say "
                f"({num_rows}, {width}); they were made for another canvas or cut short"
            )

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def occupied_rows(self) -> Int32[np.ndarray, " text"]:
        """Number of text rows up to the last inked one; 0 for a text without ink."""
        return np.diff(self.row_offsets).astype(np.int32)

    @property
    def num_bytes(self) -> int:
        """Bytes that the batch takes in memory and on the wire."""
        return self.columns.nbytes + self.row_offsets.nbytes

    def inked_patches(self, patch_size_px: int) -> Bool[np.ndarray, "text patch_row patch_column"]:
        """Return for each patch of each canvas if it holds ink.

        Args:
            patch_size_px: side of a patch; divides the canvas.
        """
        size = self.config.image_size_px
        side = size // patch_size_px
        # One bit per pixel row that has ink somewhere in the patch's columns.
        inked = np.bitwise_or.reduce(
            self.columns.reshape(len(self.columns), side, patch_size_px), axis=2
        )
        bits = (inked[:, None, :] >> np.arange(GLYPH_PX, dtype=np.uint16)[:, None]) & 1
        text, row = self._text_and_row()
        rows = np.zeros((len(self), -(-size // GLYPH_PX), GLYPH_PX, side), bool)
        rows[text, row] = bits
        of_canvas = rows.reshape(len(self), rows.shape[1] * GLYPH_PX, side)[:, :size]
        return np.any(of_canvas.reshape(len(self), side, patch_size_px, side), axis=2)

    def content(self, text: int) -> bytes:
        """Return the rows of one text as bytes: the same for texts that look the same."""
        return self.columns[self.row_offsets[text] : self.row_offsets[text + 1]].tobytes()

    def take(self, texts: Int[np.ndarray, " chosen"]) -> TextRasters:
        """Return the chosen texts, in the order given."""
        counts = self.occupied_rows[texts]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        shift = np.repeat(self.row_offsets[:-1][texts] - offsets[:-1], counts)
        return TextRasters(self.columns[np.arange(offsets[-1]) + shift], offsets, self.config)

    @staticmethod
    def concatenate(batches: Sequence[TextRasters]) -> TextRasters:
        """Return several batches as one.

        Raises:
            RenderError: if they were rendered in different ways.
        """
        if len({batch.config for batch in batches}) != 1:
            raise RenderError("rasters rendered under different settings cannot form one batch")
        counts = np.concatenate([batch.occupied_rows for batch in batches])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns = np.concatenate([batch.columns for batch in batches])
        return TextRasters(columns, offsets, batches[0].config)

    def to_pixels(
        self, *, height_px: int | None = None
    ) -> UInt8[np.ndarray, "text height_px width_px"]:
        """Return grey canvases (the three channels of a rendered text are equal), on the CPU.

        Args:
            height_px: height to return of each canvas, from the top; None is all of it.
        """
        size = self.config.image_size_px
        shape = (len(self), size if height_px is None else height_px, size)
        background, ink = np.uint8(self.config.background), np.uint8(self.config.ink)
        pixels = np.full(shape, background, np.uint8)
        text, row = self._text_and_row()
        expand_rows(self.columns, text, row, background, ink, pixels)
        return pixels

    def to_tensor(
        self, device: torch.device | str = "cpu", *, height_px: int | None = None
    ) -> torch.Tensor:
        """Return the canvases of `to_pixels` as a uint8 tensor, expanded on `device`.

        Only the bits travel to the device: about 1 KB per caption.
        """
        # Imported here: render workers use this module too, and should not load torch.
        import torch

        if torch.device(device).type == "cpu":
            return torch.from_numpy(self.to_pixels(height_px=height_px))
        return self.expand_on(device, height_px=height_px)

    def expand_on(
        self, device: torch.device | str, *, height_px: int | None = None
    ) -> torch.Tensor:
        """Return the same as `to_tensor` by torch's own operations, as on a GPU."""
        import torch

        from clippo_core.transfer import to_device

        size, device = self.config.image_size_px, torch.device(device)
        height_px = size if height_px is None else height_px
        text, row = to_device(np.stack(self._text_and_row()).astype(np.int64), device)
        # torch cannot shift uint16, hence int16. The sign bit that a shift smears is masked away.
        columns = to_device(self.columns.view(np.int16), device)
        shifts = torch.arange(GLYPH_PX, dtype=torch.int16, device=device)[:, None]
        inked = ((columns[:, None, :] >> shifts) & 1).to(torch.uint8)
        background, ink = self.config.background, self.config.ink
        num_rows = -(-size // GLYPH_PX)
        canvas = torch.full(
            (len(self), num_rows, GLYPH_PX, size), background, dtype=torch.uint8, device=device
        )
        # uint8 arithmetic wraps, so that any pair of grey levels comes out right.
        canvas[text, row] = inked * ((ink - background) % 256) + background
        return canvas.view(len(self), num_rows * GLYPH_PX, size)[:, :height_px]

    def _text_and_row(self) -> tuple[Int[np.ndarray, " text_row"], Int[np.ndarray, " text_row"]]:
        """Return the number of the text of each stored row, and its row on that text's canvas."""
        text = np.repeat(np.arange(len(self)), self.occupied_rows)
        return text, np.arange(len(self.columns)) - self.row_offsets[text]
