"""Which model a config means."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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
    font: GlyphTable | None = None,
    vocabulary: Vocabulary | None = None,
    classifier: ClassifierConfig | None = None,
) -> PairModel:
    """CLIPPO or one of its baselines, fine-tuned or not, with fresh weights.

    Args:
        config: what it computes; `text_input` decides.
        font: an already loaded font, instead of reading the one that the config names.
        vocabulary: of a baseline's texts.
        classifier: the head of a fine-tuned one.

    Raises:
        ConfigError: if the vocabulary is not the config's, or a baseline is to answer questions
            about pictures.
        RenderError: if the font is not the config's.
    """
    if config.reads_tokens:
        if classifier is None:
            return Baseline(config, vocabulary, font=font)
        return BaselineClassifier(config, vocabulary, classifier, font=font)
    if classifier is None:
        return Clippo(config, font=font)
    return ClippoClassifier(config, classifier, font=font)


@contextmanager
def without_values() -> Generator[None]:
    """Models made inside have weights of the right shapes on the meta device, and no values."""
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    """Leaves out initializers: to draw no numbers on meta, torch imports its compiler and SymPy."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
