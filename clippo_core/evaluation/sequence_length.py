"""How long texts are for a model: patches with ink, against tokens of a vocabulary."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clippo_core.config import RenderConfig
from clippo_core.errors import ConfigError
from clippo_core.rendering import TextRasters, TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX

#: Text -> how many tokens it becomes, without markers of start and end.
CountTokens = Callable[[str], int]


def wide_renderer(renderer: TextRenderer) -> TextRenderer:
    """The same rendering on a canvas that texts of thousands of characters fit on."""
    config = renderer.config
    wide = RenderConfig(
        image_size_px=4096,
        lowercase=config.lowercase,
        monospace=config.monospace,
        spacing_px=config.spacing_px,
        min_width_px=config.min_width_px,
        max_chars=None,
        font_sha256=config.font_sha256,
    )
    return TextRenderer(wide, font=renderer.font)


def count_patches(rasters: TextRasters, *, patch_size_px: int = 16) -> Int64[np.ndarray, " text"]:
    """Patches of each text that have ink in them; right and lower rims count as patches, too."""
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
    """Mean lengths of the same texts.

    Attributes:
        num_texts: how many.
        mean: by what counts: "characters", "patches", and the tokenizers' names.
        standard_error: of the means.
    """

    num_texts: int
    mean: dict[str, float]
    standard_error: dict[str, float]

    def ratio(self, tokenizer: str) -> float:
        """Patches per token; below 1 the text is shorter for CLIPPO."""
        return self.mean["patches"] / self.mean[tokenizer]


def sequence_lengths(
    texts_by_language: Mapping[str, Sequence[str]],
    renderer: TextRenderer,
    tokenizers: Mapping[str, CountTokens],
    *,
    patch_size_px: int = 16,
) -> dict[str, SequenceLengths]:
    """Length of texts in patches and in tokens, language by language.

    What does not fit on a checkpoint's canvas would count as nothing, so texts are set as by
    `wide_renderer`, in lines of 4096 px.

    Args:
        texts_by_language: what to measure; parallel texts make languages comparable.
        renderer: of the checkpoint.
        tokenizers: by name.
        patch_size_px: of the checkpoint.

    Raises:
        ConfigError: if a language has no texts, or a tokenizer has a name that is taken.

    Source: the paper's comparison of non-empty patches with SentencePiece tokens.
    """
    if taken := {"characters", "patches"} & set(tokenizers):
        raise ConfigError(f"tokenizers cannot be called {sorted(taken)}")
    wide = wide_renderer(renderer)
    lengths: dict[str, SequenceLengths] = {}
    for language, texts in texts_by_language.items():
        if not texts:
            raise ConfigError(f"language {language!r} has no texts")
        patches = count_patches(wide.render_batch(texts), patch_size_px=patch_size_px)
        counts = {"characters": np.array([len(text) for text in texts]), "patches": patches}
        counts |= {name: np.array([of(t) for t in texts]) for name, of in tokenizers.items()}
        root = np.sqrt(len(texts))
        lengths[language] = SequenceLengths(
            num_texts=len(texts),
            mean={name: float(found.mean()) for name, found in counts.items()},
            standard_error={name: float(found.std() / root) for name, found in counts.items()},
        )
    return lengths
