"""The paper's baselines, which read tokens: CLIP* (two towers) and 1T-CLIP (one, shared)."""

# torch leaves types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from clippo_core.config import Config, ImageConfig, VitConfig, require
from clippo_core.errors import ConfigError
from clippo_core.images import fit_image
from clippo_core.modeling.clippo import INITIAL_LOGIT_SCALE, normalize
from clippo_core.modeling.layers import (
    LAYER_NORM_EPSILON,
    Dense,
    TokenGroup,
    lecun_normal_,
)
from clippo_core.modeling.vit import Block, VisionTransformer
from clippo_core.modeling.vocabulary import TokenTexts, Vocabulary


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Config):
    """What a baseline computes."""

    towers: Literal["one", "two"] = "two"
    """"two" is the paper's CLIP*: text has a transformer of its own, as large as the pictures'.
    "one" is its 1T-CLIP: the transformer is shared, embeddings and heads are not."""
    vit: VitConfig = field(default_factory=VitConfig)
    """The tower or towers."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How pictures are brought onto the canvas."""
    image_size_px: int = 224
    """Side of the square canvas."""
    vocabulary_size: int = 32_000
    """Rows of the token embedding; the vocabulary may have fewer tokens."""
    max_tokens: int = 64
    """Length of every text, the ends that fill it included."""

    def __post_init__(self) -> None:
        patch = self.vit.patch_size_px
        require(
            self.image_size_px % patch == 0,
            f"patch_size_px={patch} does not divide image_size_px={self.image_size_px}",
        )
        require(self.max_tokens >= 2, f"max_tokens={self.max_tokens}; expected 2 or more")


class TokenEmbedding(nn.Module):
    """Token numbers to tokens with positions."""

    def __init__(self, config: BaselineConfig):
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocabulary_size, config.vit.width))
        self.positions = nn.Parameter(torch.empty(1, config.max_tokens, config.vit.width))
        nn.init.normal_(self.table, std=config.vit.width**-0.5)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text token width"]:
        return nn.functional.embedding(ids, self.table) + self.positions


class TextTransformer(nn.Module):
    """The text tower of CLIP*: blocks like those of the image tower; the last token is pooled.

    How the paper pools the text of CLIP* is not printed; this is big_vision's default.
    """

    def __init__(self, config: VitConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)

    def forward(self, tokens: Float[Tensor, "text token width"]) -> Float[Tensor, "text width"]:
        num_texts, num_tokens, _ = tokens.shape
        tokens = tokens.flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens, [TokenGroup(num_texts, num_tokens)])
        return self.norm(tokens.unflatten(0, (num_texts, num_tokens))[:, -1])


class Baseline(nn.Module):
    """CLIP* or 1T-CLIP, with the methods of `Clippo`.

    Every token is attended to, those after a text's end as well, as in big_vision's text
    transformer.
    """

    def __init__(self, config: BaselineConfig, vocabulary: Vocabulary):
        """Make a model with fresh weights.

        Args:
            config: what it computes.
            vocabulary: of its texts.

        Raises:
            ConfigError: if the vocabulary has more tokens than the config allows.
        """
        super().__init__()
        if vocabulary.size > config.vocabulary_size:
            raise ConfigError(
                f"the vocabulary has {vocabulary.size} tokens; vocabulary_size is "
                f"{config.vocabulary_size}"
            )
        self.config, self.vocabulary = config, vocabulary
        vit, grid_size = config.vit, config.image_size_px // config.vit.patch_size_px
        self.encoder = VisionTransformer(vit, grid_size=grid_size)
        self.token_embedding = TokenEmbedding(config)
        self.text_encoder = TextTransformer(vit) if config.towers == "two" else None
        self.text_head = Dense(vit.width, vit.embed_dim)
        lecun_normal_(self.text_head.kernel.data, fan_in=vit.width)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))

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
        texts: TokenTexts,
        left_texts: TokenTexts | None = None,
    ) -> tuple[Float[Tensor, "pair embed"], Float[Tensor, "pair embed"], Float[Tensor, "1"]]:
        """Unit-length embeddings of both sides of the pairs, and the logit scale; as `Clippo`'s."""
        left = [normalize(self.encoder(images))] if len(images) else []
        left += [self.embed_tokens(left_texts)] if left_texts is not None else []
        return torch.cat(left), self.embed_tokens(texts), self.logit_scale

    def embed_tokens(self, texts: TokenTexts) -> Float[Tensor, "text embed"]:
        """Unit-length embeddings of texts, with gradients.

        Raises:
            ConfigError: if their numbers belong to another vocabulary.
        """
        if texts.vocabulary_sha256 != self.vocabulary.sha256:
            raise ConfigError("these texts were encoded with another vocabulary than the model's")
        tokens = self.token_embedding(torch.from_numpy(texts.ids).to(self.device))
        if self.text_encoder is not None:
            return normalize(self.text_head(self.text_encoder(tokens)))
        group = TokenGroup(*tokens.shape[:2])
        mixed = self.encoder.transform(tokens.flatten(0, 1), [group]).view_as(tokens)
        return normalize(self.text_head(self.encoder.pool(mixed)))

    def encode_images(
        self,
        images: UInt8[np.ndarray, "image height_px width_px 3"]
        | Sequence[UInt8[np.ndarray, "_ _ 3"] | Image.Image],
        *,
        batch_size: int = 256,
    ) -> Float32[np.ndarray, "image embed"]:
        """Embed pictures, resized to the canvas; unit length."""
        size = self.config.image_size_px

        def embed(batch: slice) -> Tensor:
            fitted = [fit_image(i, self.config.image, image_size_px=size) for i in images[batch]]
            return normalize(self.encoder(torch.from_numpy(np.stack(fitted)).to(self.device)))

        return self._in_batches(embed, len(images), batch_size)

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = 256
    ) -> Float32[np.ndarray, "text embed"]:
        """Embed texts; unit length."""
        encoded = self.vocabulary.encode(texts, max_tokens=self.config.max_tokens)
        every = np.arange(len(texts))
        return self._in_batches(
            lambda batch: self.embed_tokens(encoded.take(every[batch])), len(texts), batch_size
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


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())
