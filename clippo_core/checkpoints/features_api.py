"""Embeddings of a checkpoint for MTEB (`encode`) and scikit-learn (`fit`, `transform`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from clippo_core.checkpoints import load_checkpoint
from clippo_core.errors import ConfigError
from clippo_core.modeling import PairModel


class TextEncoder:
    """A text encoder with the method `encode`, which MTEB and its like call."""

    def __init__(self, model: PairModel):
        """Take a loaded checkpoint."""
        self.model = model

    def encode(
        self,
        sentences: Sequence[str] | Iterable[Mapping[str, Sequence[str]]],
        *,
        batch_size: int = 256,
        **_: object,
    ) -> Float32[np.ndarray, "text embed"]:
        """Return embeddings of texts.

        Args:
            sentences: texts, or batches with a field "text", as MTEB 2 gives them.
            batch_size: number of texts that are encoded at a time.
            **_: task and prompt names and the like, which CLIPPO does not use.

        Returns:
            Unit-length embeddings.

        Raises:
            ConfigError: if a batch has no field "text".
        """
        return self.model.encode_texts(_texts_of(sentences), batch_size=batch_size)


def _texts_of(sentences: Sequence[str] | Iterable[Mapping[str, Sequence[str]]]) -> list[str]:
    texts: list[str] = []
    for item in sentences:
        if isinstance(item, str):
            texts.append(item)
        elif "text" in item:
            texts.extend(item["text"])
        else:
            raise ConfigError(f"a batch has the fields {sorted(item)}; expected one called 'text'")
    return texts


class ClippoFeatures(TransformerMixin, BaseEstimator):
    """A scikit-learn transformer from texts or pictures to embeddings.

    `make_pipeline(ClippoFeatures("runs/mine"), LogisticRegression())` classifies either.
    """

    def __init__(self, checkpoint: str | Path, *, batch_size: int = 256):
        """Keep the settings; nothing is loaded yet, as scikit-learn wants it.

        Args:
            checkpoint: a native folder or a big_vision `.npz`, on this disk.
            batch_size: number of items that are encoded at a time.
        """
        self.checkpoint = checkpoint
        self.batch_size = batch_size

    def fit(self, X: object = None, y: object = None) -> ClippoFeatures:  # noqa: N803
        """Load the checkpoint; nothing is learned from the data."""
        del X, y
        self.model_ = load_checkpoint(self.checkpoint)
        return self

    def transform(
        self,
        X: Sequence[str] | Sequence[Image.Image] | np.ndarray,  # noqa: N803
    ) -> Float32[np.ndarray, "item embed"]:
        """Return embeddings of texts, PIL images, or RGB arrays; all of one sort.

        Raises:
            ConfigError: if texts and pictures are mixed.
        """
        check_is_fitted(self)
        kinds = {isinstance(item, str) for item in X}
        if len(kinds) > 1:
            raise ConfigError("texts and pictures in one call; transform them apart")
        encode = self.model_.encode_texts if kinds == {True} else self.model_.encode_images
        return encode(cast("Any", X), batch_size=self.batch_size)

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Return `clippo0` and so on, a name for each number of an embedding."""
        del input_features
        check_is_fitted(self)
        embed_dim = self.model_.config.vit.embed_dim
        return np.array([f"clippo{number}" for number in range(embed_dim)], dtype=object)
