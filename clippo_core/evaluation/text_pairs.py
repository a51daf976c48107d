"""Two sentences in one rendered image, and how similar two texts are."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from clippo_core.errors import ConfigError
from clippo_core.modeling import Clippo
from clippo_core.rendering import TextRasters
from clippo_core.rendering.pairs import PAIR_SEPARATOR, join_pairs
from clippo_core.rendering.unifont import GLYPH_PX

__all__ = ["PAIR_SEPARATOR", "join_pairs", "share_full", "text_similarities"]


def share_full(rasters: TextRasters) -> float:
    """Share of texts with ink in the canvas' last row: those that may be cut. An upper bound."""
    num_rows = rasters.config.image_size_px // GLYPH_PX
    return float((rasters.occupied_rows == num_rows).mean())


def text_similarities(
    model: Clippo, firsts: Sequence[str], seconds: Sequence[str], *, batch_size: int = 256
) -> Float32[np.ndarray, " pair"]:
    """Cosine of the two texts' embeddings, each text an image of its own; no training.

    Raises:
        ConfigError: if there are not as many first as second texts.
    """
    if len(firsts) != len(seconds):
        raise ConfigError(f"{len(firsts)} first texts, but {len(seconds)} second ones")
    one, other = (model.encode_texts(texts, batch_size=batch_size) for texts in (firsts, seconds))
    return (one * other).sum(axis=1)
