"""The choice of the model that a config names."""

from __future__ import annotations

import torch

from clippo_core.config import ClassifierConfig, ClippoConfig
from clippo_core.modeling.baselines import Baseline
from clippo_core.modeling.classifier import BaselineClassifier, ClippoClassifier
from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.pair_model import PairModel
from clippo_core.rendering import GlyphTable
from clippo_core.vocabulary import Vocabulary


def make_model(
    config: ClippoConfig,
    *,
    seed: int | None = None,
    font: GlyphTable | None = None,
    vocabulary: Vocabulary | None = None,
    classifier: ClassifierConfig | None = None,
) -> PairModel:
    """Return CLIPPO or one of its baselines, fine-tuned or not, with fresh weights.

    Args:
        config: settings of the model; `text_input` decides which it is.
        seed: seed of the weights, which leaves torch's own generator as it was; None draws from
            that generator.
        font: an already loaded font, instead of reading the one that the config names.
        vocabulary: vocabulary of a baseline's texts.
        classifier: settings of the head of a fine-tuned model.

    Raises:
        ConfigError: if the vocabulary is not the config's, or a baseline is to answer questions
            about pictures.
        RenderError: if the font is not the config's.
    """
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_model(config, font=font, vocabulary=vocabulary, classifier=classifier)
    if config.reads_tokens:
        if classifier is None:
            return Baseline(config, vocabulary, font=font)
        return BaselineClassifier(config, vocabulary, classifier, font=font)
    if classifier is None:
        return Clippo(config, font=font)
    return ClippoClassifier(config, classifier, font=font)


def without_values() -> torch.device:
    """Return a context in which models get weights of the right shapes on the meta device."""
    return torch.device("meta")
