"""A checkpoint in the form that open_clip's users know: (model, transform, tokenizer).

CLIP_benchmark's `zeroshot_classification.evaluate` and `zeroshot_retrieval.evaluate`, and
open_clip's zero-shot builders take these. With `amp=True` (CLIP_benchmark's default) they compute
in bfloat16 or float16, with `amp=False` in float32. `pipelines evaluate` computes in float32 on a
CPU, where numbers are the same then, and in bfloat16 on a GPU; they differ in the third digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int16, Int32, Shaped, UInt8, UInt16
from PIL import Image
from torch import Tensor, nn

from clippo_core.checkpoints import load_checkpoint
from clippo_core.config import ImageConfig, RenderConfig
from clippo_core.errors import ConfigError
from clippo_core.images import fit_image
from clippo_core.modeling import PairModel
from clippo_core.modeling.pair_model import normalize as to_unit_length
from clippo_core.rendering import TextRasters
from clippo_core.rendering.unifont import GLYPH_PX
from clippo_core.vocabulary import TokenTexts


def as_open_clip(
    path: str | Path, *, image_size_px: int | None = None, font: str | None = None
) -> tuple[OpenClipModel, OpenClipTransform, OpenClipTokenizer]:
    """Return a checkpoint as model, transform and tokenizer for programs written for open_clip.

    Args:
        path: a native folder or a big_vision `.npz`, on this disk.
        image_size_px: canvas to use instead of the stored one.
        font: see `load_checkpoint`.

    Returns:
        The model, on the CPU; a function that turns a PIL image into its input; and one that turns
        texts into it.

    Raises:
        CheckpointError: if it is missing, damaged, of another format, or does not fit its config.
        RenderError: if the font is not the one that it was trained with.
    """
    clippo = load_checkpoint(path, image_size_px=image_size_px, font=font)
    transform = OpenClipTransform(clippo.config.image, clippo.config.render.image_size_px)
    return OpenClipModel(clippo).eval(), transform, OpenClipTokenizer(clippo)


@dataclass(frozen=True)
class OpenClipTransform:
    """A function that fits a picture onto the canvas; pixels stay grey levels of 8 bits.

    The model scales them itself. So a batch takes a quarter of the room of float32, and pixels
    that a client casts to a float type, even bfloat16, are the same afterwards.
    """

    image: ImageConfig
    image_size_px: int

    def __call__(self, picture: Image.Image) -> UInt8[Tensor, "3 height_px width_px"]:
        """Return one picture of any mode and size on the canvas."""
        pixels = fit_image(picture, self.image, image_size_px=self.image_size_px)
        return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())


class OpenClipTokenizer:
    """A function that renders texts; "tokens" are text rows of the canvas, one bit per pixel.

    The tokens of a baseline are those of its vocabulary.
    """

    def __init__(self, model: PairModel):
        """Take a loaded checkpoint."""
        self._model = model

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None
    ) -> Int16[Tensor, "text text_row width_px"] | Int32[Tensor, "text token"]:
        """Return texts in the form that the model takes.

        Args:
            texts: one text or many.
            context_length: taken for compatibility; the canvas, or `max_tokens`, is the limit.

        Returns:
            Bit `y` of an element is the pixel `y` rows down in its text row; blank rows are 0.
        """
        del context_length
        texts = [texts] if isinstance(texts, str) else texts
        rasters = self._model.prepare_texts(texts)
        if isinstance(rasters, TokenTexts):
            return torch.from_numpy(rasters.ids)
        num_rows = _num_rows(rasters.config)
        rows = np.zeros((len(rasters), num_rows, rasters.columns.shape[1]), np.uint16)
        rows[np.arange(num_rows) < rasters.occupied_rows[:, None]] = rasters.columns
        return torch.from_numpy(rows.view(np.int16))


class OpenClipModel(nn.Module):
    """A CLIPPO model with open_clip's methods.

    Embeddings always have unit length, with `normalize=False` too: a CLIPPO embedding is its
    direction, and its length was never trained.
    """

    def __init__(self, clippo: PairModel):
        super().__init__()
        self.clippo = clippo

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on similarities, as open_clip's `logit_scale` is."""
        return self.clippo.log_logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """Summand of the logits of a model trained with the sigmoid loss."""
        return self.clippo.logit_bias

    def encode_image(
        self, image: Shaped[Tensor, "image 3 height_px width_px"], normalize: bool = False
    ) -> Float[Tensor, "image embed"]:
        """Return embeddings of pictures that `OpenClipTransform` made, in any number type.

        Raises:
            ConfigError: if their values are not whole grey levels, as when another transform made
                them.
        """
        del normalize
        pixels = image.round().clamp(0, 255).to(torch.uint8)
        if not torch.equal(pixels.to(image.dtype), image):
            raise ConfigError(
                f"pictures hold values from {float(image.min()):.3g} to {float(image.max()):.3g}; "
                "expected whole grey levels from 0 to 255, as the transform of as_open_clip makes"
            )
        return to_unit_length(self.clippo.encoder(pixels.permute(0, 2, 3, 1).contiguous()))

    def encode_text(
        self,
        text: Int16[Tensor, "text text_row width_px"] | Int32[Tensor, "text token"],
        normalize: bool = False,
    ) -> Float[Tensor, "text embed"]:
        """Return embeddings of texts that `OpenClipTokenizer` made."""
        del normalize
        if self.clippo.vocabulary is not None:
            ids = text.cpu().numpy()
            return self.clippo.embed_texts(TokenTexts(ids, self.clippo.vocabulary.sha256))
        return self.clippo.embed_texts(unpack_rows(text, self.clippo.config.render))

    def forward(
        self,
        image: Shaped[Tensor, "image 3 height_px width_px"] | None = None,
        text: Int16[Tensor, "text text_row width_px"] | Int32[Tensor, "text token"] | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return embeddings of the given inputs, the positive logit scale, and the bias if any."""
        images = None if image is None else self.encode_image(image)
        texts = None if text is None else self.encode_text(text)
        learned = (self.clippo.logit_scale, self.logit_bias)
        return images, texts, *(value for value in learned if value is not None)


def unpack_rows(rows: Int16[Tensor, "text text_row width_px"], config: RenderConfig) -> TextRasters:
    """Return the tokenizer's rows as rasters.

    Raises:
        ConfigError: if the rows belong to another canvas.
    """
    expected = (_num_rows(config), config.image_size_px)
    if tuple(rows.shape[1:]) != expected:
        raise ConfigError(
            f"texts of {tuple(rows.shape[1:])} rows and columns for a canvas of {expected}; use "
            "the tokenizer that as_open_clip returned with the model"
        )
    packed: UInt16[np.ndarray, "text text_row width_px"] = rows.cpu().numpy().view(np.uint16)
    text, row = np.nonzero(np.bitwise_or.reduce(packed, axis=2))
    # Rows come in order, so that a text's last inked one is the one that stays.
    occupied = np.zeros(len(packed), np.int64)
    occupied[text] = row + 1
    offsets = np.concatenate([[0], np.cumsum(occupied)]).astype(np.int32)
    columns = packed[np.arange(packed.shape[1]) < occupied[:, None]]
    return TextRasters(columns, offsets, config)


def _num_rows(config: RenderConfig) -> int:
    return config.image_size_px // GLYPH_PX
