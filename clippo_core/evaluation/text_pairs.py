"""Two sentences in one rendered image, and how similar two texts are."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from clippo_core.errors import ConfigError
from clippo_core.modeling import PairModel
from clippo_core.rendering.unifont import GLYPH_PX
from clippo_core.vocabulary import END_ID, PreparedTexts, TokenTexts


def share_full(texts: PreparedTexts) -> float:
    """Share of texts that fill their room, and so may be cut. An upper bound.

    That is ink in the canvas' last row; of tokens, one before the last place.
    """
    if isinstance(texts, TokenTexts):
        return float((texts.ids[:, -2] != END_ID).mean())
    num_rows = texts.config.image_size_px // GLYPH_PX
    return float((texts.occupied_rows == num_rows).mean())


def text_similarities(
    model: PairModel, firsts: Sequence[str], seconds: Sequence[str], *, batch_size: int = 256
) -> Float32[np.ndarray, " pair"]:
    """Cosine of the two texts' embeddings, each text an image of its own; no training.

    Raises:
        ConfigError: if there are not as many first as second texts.
    """
    if len(firsts) != len(seconds):
        raise ConfigError(f"{len(firsts)} first texts, but {len(seconds)} second ones")
    one, other = (model.encode_texts(texts, batch_size=batch_size) for texts in (firsts, seconds))
    return (one * other).sum(axis=1)
