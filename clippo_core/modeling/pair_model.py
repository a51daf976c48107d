"""The base class of CLIPPO and its baselines: pictures and texts in, unit embeddings out."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from clippo_core.config import ClippoConfig
from clippo_core.errors import Rejected, SampleError
from clippo_core.images import decode_image, fit_image
from clippo_core.modeling.patch_sets import PatchSets, drawn_patches
from clippo_core.modeling.vit import Transformer, VisionTransformer
from clippo_core.rendering import GlyphTable, TextRasters, TextRenderer
from clippo_core.vocabulary import PreparedTexts, TokenTexts, Vocabulary

INITIAL_LOGIT_SCALE = 10.0
#: Source: SigLIP (arXiv:2303.15343, section 3.2), which starts from the same scale.
INITIAL_LOGIT_BIAS = -10.0
NORM_EPSILON = 1e-8


#: A batch of texts on the device, ready for the encoder: patches, or token numbers.
DeviceTexts = PatchSets | Int[Tensor, "_ _"]
#: Embeddings of the left and of the right sides of pairs, the logit scale, and the logit bias of a
#: model that has one.
Embeddings = tuple[Tensor, ...]


def normalize(features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
    """Return features of unit length, in float32.

    Computed as `x / (|x| + 1e-8)`, as in big_vision's one_tower model.
    """
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=-1, keepdim=True) + NORM_EPSILON)


class PairModel(nn.Module, ABC):
    """A tower for pictures, a way to embed texts, and a learned logit scale.

    `encode_images` and `encode_texts` are for use; `forward` is for training.

    Attributes:
        config: settings of the model, the font's hash included.
        renderer: draws text on the model's canvas.
        vocabulary: vocabulary of a model that reads tokens; None where it reads pixels.
        encoder: tower of the pictures.
        logit_bias: learned summand of the logits; None where the softmax loss, to which it makes no
            difference, is trained with.
    """

    vocabulary: Vocabulary | None = None
    logit_bias: nn.Parameter | None

    def __init__(self, config: ClippoConfig, *, font: GlyphTable | None = None):
        """Make a model with fresh weights.

        Args:
            config: settings of the model; with the font's hash it is kept as `self.config`.
            font: an already loaded font, instead of reading `config.render.font`.

        Raises:
            RenderError: if the font cannot be read or is another one than the config names.
        """
        super().__init__()
        self.renderer = TextRenderer(config.render, font=font)
        self.config = dataclasses.replace(config, render=self.renderer.config)
        self.encoder = VisionTransformer(config.vit, grid_size=config.grid_size)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))
        bias = nn.Parameter(torch.tensor([INITIAL_LOGIT_BIAS])) if config.has_logit_bias else None
        self.register_parameter("logit_bias", bias)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.log_logit_scale.device

    @property
    def logit_scale(self) -> Float[Tensor, "1"]:
        """Positive factor on similarities, whose logarithm is learned."""
        return self.log_logit_scale.exp()

    @property
    def towers(self) -> list[Transformer]:
        """All transformers of the model."""
        return [module for module in self.modules() if isinstance(module, Transformer)]

    @abstractmethod
    def prepare_texts(self, texts: Sequence[str | bytes]) -> PreparedTexts:
        """Return texts in the form that `embed_texts` takes: drawn, or as tokens."""

    @abstractmethod
    def on_device(self, texts: PreparedTexts | DeviceTexts) -> DeviceTexts:
        """Bring prepared texts to the model's device; those that are there stay as they are.

        Raises:
            ClippoError: if they were prepared otherwise than the model's.
        """

    @abstractmethod
    def text_features(self, texts: PreparedTexts | DeviceTexts) -> Float[Tensor, "text width"]:
        """Return features of texts before the head, with gradients: where fine-tuning starts.

        Raises:
            ClippoError: if they were prepared otherwise than the model's.
        """

    @abstractmethod
    def _embed(
        self, pictures: Sequence[PatchSets], texts: DeviceTexts
    ) -> Float[Tensor, "item embed"]:
        """Return embeddings of pictures, then of texts, not normalised, encoded all at once."""

    def forward(
        self,
        images: UInt8[Tensor, "image height_px width_px 3"],
        texts: PreparedTexts | DeviceTexts,
        left_texts: PreparedTexts | DeviceTexts | None = None,
        kept_patches: Int64[Tensor, "image kept"] | None = None,
    ) -> Embeddings:
        """Return unit-length embeddings of both sides of the pairs, and what the logits have.

        That is the logit scale and, where the model has one, the logit bias. Everything goes
        through the encoder at once.

        Args:
            images: left sides of the first pairs.
            texts: right sides of all pairs.
            left_texts: left sides of the pairs after those with a picture.
            kept_patches: patches of each image that take part; None for all.

        Raises:
            ClippoError: if the texts were prepared otherwise than the model's.
        """
        right = self.on_device(texts)
        num_left, both = 0, right
        if left_texts is not None and len(left_texts):
            num_left, both = len(left_texts), _joined(self.on_device(left_texts), right)
        pictures: list[PatchSets] = []
        if len(images) and kept_patches is not None:
            pictures = [drawn_patches(images, kept_patches, self.encoder.patch_size_px)]
        elif len(images):
            pictures = [self.encoder.whole(images)]
        features = self._embed(pictures, both)
        of_left, of_right = features.split([len(images) + num_left, len(right)])
        learned = [self.logit_scale]
        if self.logit_bias is not None:
            # Not the parameter itself, whose gradients wrappers watch.
            learned.append(self.logit_bias.clone())
        return normalize(of_left), normalize(of_right), *learned

    def embed_texts(self, texts: PreparedTexts) -> Float[Tensor, "text embed"]:
        """Return unit-length embeddings of prepared texts, with gradients.

        Raises:
            ClippoError: if they were prepared otherwise than the model's.
        """
        return normalize(self._embed([], self.on_device(texts)))

    def encode_images(
        self,
        images: UInt8[np.ndarray, "image height_px width_px 3"]
        | Sequence[UInt8[np.ndarray, "_ _ 3"] | Image.Image | str | Path],
        *,
        batch_size: int = 256,
    ) -> Float32[np.ndarray, "image embed"]:
        """Return embeddings of pictures, resized to the canvas as the checkpoint says.

        Args:
            images: RGB arrays, PIL images of any mode, or paths of picture files; any size.
            batch_size: number of pictures that are encoded at a time.

        Returns:
            Unit-length embeddings.

        Raises:
            SampleError: if a file cannot be read or decoded.
        """

        def embed(batch: slice) -> Tensor:
            fitted = [self._on_canvas(image) for image in images[batch]]
            return normalize(self.encoder(torch.from_numpy(np.stack(fitted)).to(self.device)))

        width = self.config.vit.embed_dim
        return self._in_batches(embed, len(images), batch_size, width=width)

    def _on_canvas(
        self, image: UInt8[np.ndarray, "_ _ 3"] | Image.Image | str | Path
    ) -> UInt8[np.ndarray, "_ _ 3"]:
        size = self.config.render.image_size_px
        if not isinstance(image, str | Path):
            return fit_image(image, self.config.image, image_size_px=size)
        try:
            pixels = decode_image(Path(image).read_bytes(), self.config.image, image_size_px=size)
        except OSError as error:
            raise SampleError(f"{image} cannot be read: {error}") from None
        if isinstance(pixels, Rejected):
            raise SampleError(f"{image} cannot be used: {pixels.reason}: {pixels.detail}")
        return pixels

    def encode_texts(
        self, texts: Sequence[str | bytes] | PreparedTexts, *, batch_size: int = 256
    ) -> Float32[np.ndarray, "text embed"]:
        """Return embeddings of texts, which are prepared unless they are already.

        Args:
            texts: strings, UTF-8 bytes, or prepared texts.
            batch_size: number of texts that are encoded at a time.

        Returns:
            Unit-length embeddings.

        Raises:
            ClippoError: if prepared texts were prepared otherwise than the model's.
        """
        prepared, width = self._prepared(texts), self.config.vit.embed_dim
        every = np.arange(len(prepared))

        def embed(batch: slice) -> Tensor:
            return self.embed_texts(prepared.take(every[batch]))

        return self._in_batches(embed, len(prepared), batch_size, width=width)

    def _prepared(self, texts: Sequence[str | bytes] | PreparedTexts) -> PreparedTexts:
        is_prepared = isinstance(texts, TextRasters | TokenTexts)
        return texts if is_prepared else self.prepare_texts(texts)

    @torch.no_grad()
    def _in_batches(
        self, compute: Callable[[slice], Tensor], count: int, batch_size: int, *, width: int
    ) -> Float32[np.ndarray, "item feature"]:
        found = np.empty((count, width), np.float32)
        for start in range(0, count, batch_size):
            batch = slice(start, min(start + batch_size, count))
            found[batch] = compute(batch).float().cpu().numpy()
        return found


def _joined(first: DeviceTexts, second: DeviceTexts) -> DeviceTexts:
    """Return two batches of the same model's texts as one."""
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        return torch.cat([first, second])
    assert isinstance(second, PatchSets)
    return PatchSets.concatenate([first, second])
