"""CLIPPO: one tower for photographs and rendered text."""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from clippo_core.config import ClippoConfig
from clippo_core.errors import RenderError
from clippo_core.images import fit_image
from clippo_core.modeling.patch_sets import PatchSets, drawn_patches, text_patches
from clippo_core.modeling.vit import VisionTransformer
from clippo_core.rendering import GlyphTable, TextRasters, TextRenderer

INITIAL_LOGIT_SCALE = 10.0
NORM_EPSILON = 1e-8


def normalize(features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
    """Unit length, in float32: `x / (|x| + 1e-8)`, as in big_vision's one_tower model."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=-1, keepdim=True) + NORM_EPSILON)


class Clippo(nn.Module):
    """One Vision Transformer and a learned logit scale (CLIPPO, arXiv:2212.08045).

    `encode_images` and `encode_texts` are for use; `forward` is for training.
    """

    def __init__(self, config: ClippoConfig, *, font: GlyphTable | None = None):
        """Make a model with fresh weights.

        Args:
            config: what it computes; it gets the font's hash, and is kept as `self.config`.
            font: an already loaded font, instead of reading `config.render.font`.

        Raises:
            RenderError: if the font cannot be read or is another one than the config names.
        """
        super().__init__()
        self.renderer = TextRenderer(config.render, font=font)
        self.config = ClippoConfig(
            vit=config.vit,
            render=self.renderer.config,
            image=config.image,
            text_patches=config.text_patches,
        )
        self.encoder = VisionTransformer(config.vit, grid_size=config.grid_size)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))

    def empty_copy(self) -> Clippo:
        """A model of the same config and font, without memory for its weights."""
        with torch.device("meta"):
            return Clippo(self.config, font=self.renderer.font)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_logit_scale.device

    @property
    def logit_scale(self) -> Float[Tensor, "1"]:
        """The positive number that similarities are multiplied by; its logarithm is learned."""
        return self.log_logit_scale.exp()

    def forward(
        self,
        images: UInt8[Tensor, "image height_px width_px 3"],
        texts: TextRasters,
        left_texts: TextRasters | None = None,
        kept_patches: Int64[Tensor, "image kept"] | None = None,
    ) -> tuple[Float[Tensor, "pair embed"], Float[Tensor, "pair embed"], Float[Tensor, "1"]]:
        """Unit-length embeddings of both sides of the pairs, and the logit scale.

        Everything goes through the encoder at once.

        Args:
            images: left sides of the first pairs.
            texts: right sides of all pairs.
            left_texts: left sides of the pairs after those with a picture.
            kept_patches: the patches of each image that take part; None: all.

        Raises:
            RenderError: if the texts were rendered otherwise than the model's.
        """
        num_left = 0 if left_texts is None else len(left_texts)
        both = TextRasters.concatenate([left_texts, texts]) if left_texts is not None else texts
        parts = [self._text_sets(both)]
        if len(images) and kept_patches is not None:
            parts.insert(0, drawn_patches(images, kept_patches, self.encoder.patch_size_px))
        elif len(images):
            parts.insert(0, self.encoder.whole(images))
        features = torch.cat(self.encoder.embed(*parts))
        left, right = features.split([len(images) + num_left, len(texts)])
        return normalize(left), normalize(right), self.logit_scale

    def embed_rasters(self, texts: TextRasters) -> Float[Tensor, "text embed"]:
        """Unit-length embeddings of rendered texts, with gradients.

        Raises:
            RenderError: if they were rendered otherwise than the model's.
        """
        return normalize(self.encoder.embed(self._text_sets(texts))[0])

    def _text_sets(self, texts: TextRasters) -> PatchSets:
        if texts.config != self.config.render:
            raise RenderError(
                "these texts were rendered otherwise than the model was trained with:\n"
                f"  texts: {texts.config}\n  model: {self.config.render}\n"
                "render them with model.renderer"
            )
        patch, which = self.config.vit.patch_size_px, self.config.text_patches
        return text_patches(texts, which, patch_size_px=patch, device=self.device)

    def encode_images(
        self,
        images: UInt8[np.ndarray, "image height_px width_px 3"]
        | Sequence[UInt8[np.ndarray, "_ _ 3"] | Image.Image],
        *,
        batch_size: int = 256,
    ) -> Float32[np.ndarray, "image embed"]:
        """Embed pictures, resized to the canvas as the checkpoint says.

        Args:
            images: RGB arrays, or PIL images of any mode; any size.
            batch_size: how many are encoded at a time.

        Returns:
            Unit-length embeddings.
        """
        size = self.config.render.image_size_px

        def embed(batch: slice) -> Tensor:
            fitted = [fit_image(i, self.config.image, image_size_px=size) for i in images[batch]]
            return normalize(self.encoder(torch.from_numpy(np.stack(fitted)).to(self.device)))

        return self._in_batches(embed, len(images), batch_size)

    def encode_texts(
        self, texts: Sequence[str | bytes] | TextRasters, *, batch_size: int = 256
    ) -> Float32[np.ndarray, "text embed"]:
        """Embed texts, rendered by `self.renderer` unless they are rasters already.

        Args:
            texts: strings, UTF-8 bytes, or rasters.
            batch_size: how many are encoded at a time.

        Returns:
            Unit-length embeddings.

        Raises:
            RenderError: if rasters were rendered otherwise than the model's.
        """
        rasters = texts if isinstance(texts, TextRasters) else self.renderer.render_batch(texts)
        every = np.arange(len(rasters))
        return self._in_batches(
            lambda batch: self.embed_rasters(rasters.take(every[batch])), len(rasters), batch_size
        )

    @torch.no_grad()
    def _in_batches(
        self, embed: Callable[[slice], Tensor], count: int, batch_size: int
    ) -> Float32[np.ndarray, "item embed"]:
        embeddings = np.empty((count, self.config.vit.embed_dim), np.float32)
        for start in range(0, count, batch_size):
            batch = slice(start, min(start + batch_size, count))
            embeddings[batch] = embed(batch).cpu().numpy()
        return embeddings
