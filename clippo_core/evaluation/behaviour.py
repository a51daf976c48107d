"""Tests of a trained model with changed captions, which must matter or must not.

Capitals and a typo should hardly change what a caption finds; a caption that is upside down, blank,
or another picture's must find nothing.
"""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import require_finite
from clippo_core.modeling import PairModel
from clippo_core.rendering import TextRasters
from clippo_core.vocabulary import PreparedTexts


def with_typos(text: str, *, num_typos: int = 1, seed: int = 0) -> str:
    """Return a text with typos: letters swapped, left out, doubled, or replaced by others of it.

    A text of fewer than two characters stays as it is.
    """
    generator, letters = np.random.default_rng(seed), list(text)
    for _ in range(num_typos):
        if len(letters) < 2:
            break
        at = int(generator.integers(len(letters) - 1))
        kind = generator.integers(4)
        if kind == 0:
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        elif kind == 1:
            del letters[at]
        elif kind == 2:
            letters.insert(at, letters[at])
        else:
            letters[at] = letters[int(generator.integers(len(letters)))]
    return "".join(letters)


def upside_down(rasters: TextRasters) -> TextRasters:
    """Turn each text by 180 degrees within the rows it occupies: the same ink, unreadable."""
    text = np.repeat(np.arange(len(rasters)), rasters.occupied_rows)
    # Row k of a text becomes its last but k.
    starts, ends = rasters.row_offsets[text], rasters.row_offsets[text + 1]
    reversed_rows = starts + ends - 1 - np.arange(len(rasters.columns))
    columns = _reversed_bits(rasters.columns[reversed_rows][:, ::-1])
    return TextRasters(columns, rasters.row_offsets, rasters.config)


def _reversed_bits(columns: np.ndarray) -> np.ndarray:
    """Reverse the bits of each uint16: bit 0 becomes bit 15, and so on."""
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        low, high = np.uint16(mask), np.uint16(~mask & 0xFFFF)
        columns = (columns & low) << np.uint16(shift) | (columns & high) >> np.uint16(shift)
    return columns


@dataclass(frozen=True)
class ChangedCaptions:
    """Measures of how well changed captions and their images find each other.

    Attributes:
        accuracy: share of the images whose nearest changed caption is their own.
        recall: share of the changed captions whose nearest image is one that has them.
        similarity: mean cosine of the changed captions with the unchanged ones.
    """

    accuracy: float
    recall: float
    similarity: float


def changed_captions(
    model: PairModel,
    image_embeddings: Float32[np.ndarray, "image embed"],
    captions: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, ChangedCaptions]:
    """Measure retrieval between images and captions, the captions unchanged and changed.

    Args:
        model: encodes texts.
        image_embeddings: unit-length embeddings.
        captions: caption of each image; images may share one.
        seed: decides where the typos of "typos" are.

    Returns:
        An outcome for each change. "none", "upper_case" and "typos" should find as much or nearly
        so; "upside_down" (of a model that reads pixels), "blank" and "swapped" (each caption takes
        the place of another) should find no more than chance: one in as many as there are different
        captions.

    Raises:
        ConfigError: if there are not as many captions as images, or all are the same.
    """
    texts, caption_of_image = np.unique(np.array(captions, dtype=object), return_inverse=True)
    texts = [str(text) for text in texts]
    if len(captions) != len(image_embeddings) or len(texts) < 2:
        raise ConfigError(
            f"{len(captions)} captions, {len(texts)} of them different, for "
            f"{len(image_embeddings)} images; expected one for each, and two different ones"
        )
    typos = [with_typos(text, seed=seed + i) for i, text in enumerate(texts)]
    prepared = model.prepare_texts(texts)
    turned = {"upside_down": upside_down(prepared)} if isinstance(prepared, TextRasters) else {}
    changes: dict[str, Sequence[str] | PreparedTexts] = {
        "none": prepared,
        "upper_case": [text.upper() for text in texts],
        "typos": typos,
        **turned,
        "blank": [""] * len(texts),
        "swapped": [*texts[1:], texts[0]],
    }
    embeddings = {name: model.encode_texts(changed) for name, changed in changes.items()}
    return {
        name: _found(image_embeddings, changed, embeddings["none"], caption_of_image)
        for name, changed in embeddings.items()
    }


def _found(
    images: Float32[np.ndarray, "image embed"],
    texts: Float32[np.ndarray, "text embed"],
    unchanged: Float32[np.ndarray, "text embed"],
    text_of_image: Int[np.ndarray, " image"],
) -> ChangedCaptions:
    similarity = images @ texts.T
    require_finite(similarity)
    nearest_image = text_of_image[similarity.argmax(axis=0)]
    return ChangedCaptions(
        accuracy=float((similarity.argmax(axis=1) == text_of_image).mean()),
        recall=float((nearest_image == np.arange(len(texts))).mean()),
        similarity=float((unchanged * texts).sum(axis=1).mean()),
    )
