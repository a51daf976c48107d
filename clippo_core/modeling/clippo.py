"""The CLIPPO model: one tower for photographs and rendered text."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from clippo_core.config import ClippoConfig
from clippo_core.errors import ConfigError, RenderError
from clippo_core.modeling.pair_model import DeviceTexts, PairModel
from clippo_core.modeling.patch_sets import PatchSets, text_patches
from clippo_core.rendering import GlyphTable, TextRasters
from clippo_core.vocabulary import PreparedTexts


class Clippo(PairModel):
    """One Vision Transformer and a learned logit scale (CLIPPO, arXiv:2212.08045)."""

    def __init__(self, config: ClippoConfig, *, font: GlyphTable | None = None):
        """Make a model with fresh weights; see `PairModel`.

        Raises:
            ConfigError: if the config names a baseline.
        """
        if config.reads_tokens:
            raise ConfigError(f"text_input={config.text_input} is a baseline's; use make_model")
        super().__init__(config, font=font)

    def prepare_texts(self, texts: Sequence[str | bytes]) -> TextRasters:
        """Return rendered texts."""
        return self.renderer.render_batch(texts)

    def on_device(self, texts: PreparedTexts | DeviceTexts) -> PatchSets:
        """Return the encoded patches of texts, drawn on the model's device."""
        if isinstance(texts, PatchSets):
            return texts
        if not isinstance(texts, TextRasters):
            raise RenderError("these texts are tokens; the model reads rendered text")
        if texts.config != self.config.render:
            raise RenderError(
                "these texts were rendered otherwise than the model was trained with:\n"
                f"  texts: {texts.config}\n  model: {self.config.render}\n"
                "render them with model.renderer"
            )
        patch, which = self.config.vit.patch_size_px, self.config.text_patches
        return text_patches(texts, which, patch_size_px=patch, device=self.device)

    def text_features(self, texts: PreparedTexts | DeviceTexts) -> Float[Tensor, "text width"]:
        """Return the pooled features of texts; see `PairModel`."""
        return self.encoder.features(self.on_device(texts))

    def _embed(
        self, pictures: Sequence[PatchSets], texts: DeviceTexts
    ) -> Float[Tensor, "item embed"]:
        return self.encoder.embed(*pictures, self.on_device(texts))
