"""Which model a config means."""

from __future__ import annotations

from clippo_core.config import ClassifierConfig, ClippoConfig
from clippo_core.errors import ConfigError
from clippo_core.modeling.baselines import Baseline
from clippo_core.modeling.classifier import Classifier
from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.pair_model import PairModel
from clippo_core.rendering import GlyphTable
from clippo_core.vocabulary import Vocabulary


def make_model(
    config: ClippoConfig,
    *,
    font: GlyphTable | None = None,
    vocabulary: Vocabulary | None = None,
    classifier: ClassifierConfig | None = None,
) -> PairModel:
    """CLIPPO, fine-tuned or not, or one of its baselines, with fresh weights.

    Args:
        config: what it computes; `text_input` decides.
        font: an already loaded font, instead of reading the one that the config names.
        vocabulary: of a baseline's texts.
        classifier: the head of a fine-tuned one.

    Raises:
        ConfigError: if the vocabulary is not the config's, or a baseline is to be fine-tuned.
        RenderError: if the font is not the config's.
    """
    if classifier is not None and config.reads_tokens:
        raise ConfigError(
            f"model.text_input={config.text_input}: fine-tuning takes models that read pixels"
        )
    if classifier is not None:
        return Classifier(config, classifier, font=font)
    if config.reads_tokens:
        return Baseline(config, vocabulary, font=font)
    return Clippo(config, font=font)
