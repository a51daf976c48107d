"""The paper's baselines, which read tokens: CLIP* (two towers) and 1T-CLIP (one, shared)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clippo_core.config import ClippoConfig, VitConfig
from clippo_core.errors import ConfigError
from clippo_core.modeling.layers import LAYER_NORM_EPSILON, Dense, lecun_normal_
from clippo_core.modeling.pair_model import DeviceTexts, PairModel
from clippo_core.modeling.patch_sets import PatchSets
from clippo_core.modeling.token_groups import even_sets
from clippo_core.modeling.vit import Block, Transformer
from clippo_core.rendering import GlyphTable
from clippo_core.transfer import to_device
from clippo_core.vocabulary import PreparedTexts, TokenTexts, Vocabulary


class TokenEmbedding(nn.Module):
    """A table that turns token numbers into tokens with positions."""

    def __init__(self, config: ClippoConfig):
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocabulary_size, config.vit.width))
        self.positions = nn.Parameter(torch.empty(1, config.max_tokens, config.vit.width))
        nn.init.normal_(self.table, std=config.vit.width**-0.5)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text token width"]:
        return nn.functional.embedding(ids, self.table) + self.positions


class TextTransformer(Transformer):
    """The text tower of CLIP*: blocks like those of the image tower; the last token is pooled.

    The paper does not print how CLIP* pools its text; this is big_vision's default.
    """

    def __init__(self, config: VitConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)

    def forward(self, tokens: Float[Tensor, "text token width"]) -> Float[Tensor, "text width"]:
        group = even_sets(tokens.shape[0], tokens.shape[1])
        mixed = self.transform(tokens.flatten(0, 1), [group])
        return self.norm(mixed.view_as(tokens)[:, -1])


class Baseline(PairModel):
    """The baselines CLIP* and 1T-CLIP.

    Every token is attended to, those after a text's end as well, as in big_vision's text
    transformer. The renderer draws on pictures only, for the typographic attack.
    """

    def __init__(
        self,
        config: ClippoConfig,
        vocabulary: Vocabulary | None,
        *,
        font: GlyphTable | None = None,
    ):
        """Make a model with fresh weights.

        Args:
            config: settings of the model; with the vocabulary's hash they are kept as
                `self.config`.
            vocabulary: vocabulary of its texts; without one it takes tokens, but no strings.
            font: see `PairModel`.

        Raises:
            ConfigError: if the config is CLIPPO's, or the vocabulary has more tokens than it
                allows, or is another one than it names.
            RenderError: see `PairModel`.
        """
        super().__init__(config, font=font)
        if not config.reads_tokens:
            raise ConfigError("text_input=pixels is CLIPPO's; use make_model")
        if vocabulary is not None:
            self.vocabulary = _checked(vocabulary, config)
            self.config = dataclasses.replace(self.config, vocabulary_sha256=vocabulary.sha256)
        vit = config.vit
        self.token_embedding = TokenEmbedding(config)
        has_tower = config.text_input == "tokens_two_towers"
        self.text_encoder = TextTransformer(vit) if has_tower else None
        self.text_head = Dense(vit.width, vit.embed_dim)
        lecun_normal_(self.text_head.kernel.data, fan_in=vit.width)

    def prepare_texts(self, texts: Sequence[str | bytes]) -> TokenTexts:
        """Return the token numbers of texts.

        Raises:
            ConfigError: if the model was made without a vocabulary.
        """
        if self.vocabulary is None:
            raise ConfigError("this baseline was made without a vocabulary; it can read no text")
        return self.vocabulary.encode(texts, max_tokens=self.config.max_tokens)

    def on_device(self, texts: PreparedTexts | DeviceTexts) -> Int[Tensor, "text token"]:
        """Return token numbers on the model's device."""
        if isinstance(texts, Tensor):
            return texts
        if not isinstance(texts, TokenTexts):
            raise ConfigError("these texts are rendered; the model reads tokens")
        if texts.vocabulary_sha256 != self.config.vocabulary_sha256:
            raise ConfigError("these texts were encoded with another vocabulary than the model's")
        return to_device(texts.ids, self.device)

    def text_features(self, texts: PreparedTexts | DeviceTexts) -> Float[Tensor, "text width"]:
        """Return the features that the text tower, or the shared one, pools; see `PairModel`."""
        tokens = self.token_embedding(self.on_device(texts))
        if self.text_encoder is not None:
            return self.text_encoder(tokens)
        group = even_sets(tokens.shape[0], tokens.shape[1])
        return self.encoder.pooled(tokens.flatten(0, 1), [group])

    def _embed(
        self, pictures: Sequence[PatchSets], texts: DeviceTexts
    ) -> Float[Tensor, "item embed"]:
        num_pictures = sum(map(len, pictures))
        if not pictures and torch.is_grad_enabled():
            # A blank canvas, left out below, gives the image tower gradients: an exchange between
            # ranks fails where there are none.
            pictures = [self.encoder.whole(self._blank_canvas())]
        tokens = self.token_embedding(self.on_device(texts))
        if self.text_encoder is not None:
            of_pictures = [self.encoder.embed(*pictures)[:num_pictures]] if pictures else []
            return torch.cat([*of_pictures, self.text_head(self.text_encoder(tokens))])
        patches = [self.encoder.embed_patches(part) for part in pictures]
        groups = [part.group for part in pictures]
        groups.append(even_sets(tokens.shape[0], tokens.shape[1]))
        pooled = self.encoder.pooled(torch.cat([*patches, tokens.flatten(0, 1)]), groups)
        of_pictures, of_texts = pooled.split([len(pooled) - len(texts), len(texts)])
        return torch.cat([self.encoder.head(of_pictures)[:num_pictures], self.text_head(of_texts)])

    def _blank_canvas(self) -> Tensor:
        size = self.config.render.image_size_px
        return torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.device)


def _checked(vocabulary: Vocabulary, config: ClippoConfig) -> Vocabulary:
    if vocabulary.size > config.vocabulary_size:
        raise ConfigError(
            f"the vocabulary has {vocabulary.size} tokens; vocabulary_size is "
            f"{config.vocabulary_size}"
        )
    if config.vocabulary_sha256 not in (None, vocabulary.sha256):
        raise ConfigError(
            f"the config was made with vocabulary {config.vocabulary_sha256[:12]}…, not with "
            f"{vocabulary.sha256[:12]}…"
        )
    return vocabulary
