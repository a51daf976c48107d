"""Lengths of texts for a model: if they fit, and patches with ink against tokens."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from clippo_core.errors import ConfigError
from clippo_core.rendering import TextRasters, TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX
from clippo_core.vocabulary import END_ID, PreparedTexts, TokenTexts

#: A function that returns how many tokens a text becomes, without markers of start and end.
CountTokens = Callable[[str], int]
#: Side of a canvas that texts of thousands of characters fit on.
_WIDE_CANVAS_PX = 4096


def share_full(texts: PreparedTexts) -> float:
    """Return the share of texts that fill their room, and so may be cut: an upper bound.

    A drawn text fills its room when the canvas' last row has ink; tokens do when the place before
    the last holds one.
    """
    if isinstance(texts, TokenTexts):
        return float((texts.ids[:, -2] != END_ID).mean())
    num_rows = texts.config.image_size_px // GLYPH_PX
    return float((texts.occupied_rows == num_rows).mean())


def count_patches(rasters: TextRasters, *, patch_size_px: int = 16) -> Int64[np.ndarray, " text"]:
    """Count the patches of each text that hold ink, those cut off by the rim included."""
    counts = np.empty(len(rasters), np.int64)
    for text in range(len(rasters)):
        columns = rasters.columns[rasters.row_offsets[text] : rasters.row_offsets[text + 1]]
        bits = columns[:, None, :] >> np.arange(GLYPH_PX, dtype=np.uint16)[:, None] & 1
        ink = bits.reshape(-1, columns.shape[1])
        rims = [(0, -length % patch_size_px) for length in ink.shape]
        padded = np.pad(ink, rims)
        rows, width = (length // patch_size_px for length in padded.shape)
        grid = padded.reshape(rows, patch_size_px, width, patch_size_px)
        counts[text] = grid.any(axis=(1, 3)).sum()
    return counts


@dataclass(frozen=True, eq=False)
class SequenceLengths:
    """Mean lengths of the same texts in several units.

    Attributes:
        num_texts: number of texts that were measured.
        mean: the mean number of "characters", of "patches", and of each tokenizer's tokens.
    """

    num_texts: int
    mean: dict[str, float]

    def ratio(self, tokenizer: str) -> float:
        """Return the patches per token; below 1 the text is shorter for CLIPPO."""
        return self.mean["patches"] / self.mean[tokenizer]


def sequence_lengths(
    texts_by_language: Mapping[str, Sequence[str]],
    renderer: TextRenderer,
    tokenizers: Mapping[str, CountTokens],
    *,
    patch_size_px: int = 16,
) -> dict[str, SequenceLengths]:
    """Measure texts in patches and in tokens, language by language.

    What does not fit on a checkpoint's canvas would count as nothing, so texts are set on a canvas
    of 4096 px.

    Args:
        texts_by_language: texts to measure; parallel ones make languages comparable.
        renderer: draws as the checkpoint does.
        tokenizers: functions that count tokens, by name.
        patch_size_px: patch size of the checkpoint.

    Raises:
        ConfigError: if a language has no texts, or a tokenizer has a name that is taken.

    Source: the paper's comparison of non-empty patches with SentencePiece tokens.
    """
    if taken := {"characters", "patches"} & set(tokenizers):
        raise ConfigError(f"tokenizers cannot be called {sorted(taken)}")
    config = replace(renderer.config, image_size_px=_WIDE_CANVAS_PX, max_chars=None)
    wide = TextRenderer(config, font=renderer.font)
    lengths: dict[str, SequenceLengths] = {}
    for language, texts in texts_by_language.items():
        if not texts:
            raise ConfigError(f"language {language!r} has no texts")
        patches = count_patches(wide.render_batch(texts), patch_size_px=patch_size_px)
        counts = {"characters": np.array([len(text) for text in texts]), "patches": patches}
        counts |= {name: np.array([of(t) for t in texts]) for name, of in tokenizers.items()}
        means = {name: float(found.mean()) for name, found in counts.items()}
        lengths[language] = SequenceLengths(num_texts=len(texts), mean=means)
    return lengths
