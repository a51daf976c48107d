"""Recall@k of retrieval between images and texts, with several texts per image allowed."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import require_finite


class _Numbered(NamedTuple):
    """Embeddings with the number of the image that each belongs to."""

    embeddings: Float32[np.ndarray, "item embed"]
    images: Int[np.ndarray, " item"]


def retrieval_recall(
    image_embeddings: Float32[np.ndarray, "image embed"],
    text_embeddings: Float32[np.ndarray, "text embed"],
    image_of_text: Int[np.ndarray, " _"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    block_rows: int = 512,
) -> dict[str, float]:
    """Return recall@k of images by texts and of texts by images.

    An image counts as found if any of its texts is among the `k` nearest texts; a text, if its
    image is among the `k` nearest images. Of equal similarities the earlier candidate is nearer.

    Args:
        image_embeddings: unit-length embeddings.
        text_embeddings: unit-length embeddings.
        image_of_text: the image that each text describes.
        ks: numbers of candidates that count.
        block_rows: queries compared at a time; memory grows with it, not with the square of all.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k`, from 0 to 1.

    Raises:
        ConfigError: if a text names an image that is not there, or an image has no text.
        SampleError: if embeddings are no finite numbers.

    Source: big_vision `evaluators/proj/image_text/image_text_retrieval.py` at 0127fb6; equality
    shown in tests/parity/test_retrieval.py.
    """
    _check(image_of_text, num_images=len(image_embeddings), num_texts=len(text_embeddings))
    images = _Numbered(image_embeddings, np.arange(len(image_embeddings)))
    texts = _Numbered(text_embeddings, image_of_text)
    ranks = {
        "image_to_text": _best_ranks(images, texts, block_rows),
        "text_to_image": _best_ranks(texts, images, block_rows),
    }
    return {f"{name}_recall@{k}": float((r < k).mean()) for name, r in ranks.items() for k in ks}


def retrieval_chance(
    image_of_text: Int[np.ndarray, " text"], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return the recalls of a random order of the candidates, named as by `retrieval_recall`.

    Args:
        image_of_text: the image that each text describes; every image has a text.
        ks: numbers of candidates that count.
    """
    num_texts, texts_per_image = len(image_of_text), np.bincount(image_of_text)
    num_images = len(texts_per_image)
    chance: dict[str, float] = {}
    for k in ks:
        # A text of the image is missed by all k draws without replacement.
        drawn = np.arange(min(k, num_texts))
        left = np.maximum(num_texts - texts_per_image[:, None] - drawn, 0) / (num_texts - drawn)
        chance[f"image_to_text_recall@{k}"] = float(1 - left.prod(axis=1).mean())
    return chance | {f"text_to_image_recall@{k}": min(k / num_images, 1.0) for k in ks}


def _best_ranks(
    queries: _Numbered, candidates: _Numbered, block_rows: int
) -> Int[np.ndarray, " query"]:
    """Count for each query the candidates before the nearest one of the same image."""
    ranks = np.empty(len(queries.images), np.int64)
    for start in range(0, len(ranks), block_rows):
        rows = slice(start, start + block_rows)
        similarity = queries.embeddings[rows] @ candidates.embeddings.T
        require_finite(similarity)
        is_right = queries.images[rows, None] == candidates.images
        # argmax takes the first of equals, which is the order of nearness here.
        nearest = np.where(is_right, similarity, -np.inf).argmax(axis=1)[:, None]
        best = np.take_along_axis(similarity, nearest, axis=1)
        is_earlier = np.arange(similarity.shape[1]) < nearest
        ranks[rows] = ((similarity > best) | ((similarity == best) & is_earlier)).sum(axis=1)
    return ranks


def _check(image_of_text: Int[np.ndarray, " _"], *, num_images: int, num_texts: int) -> None:
    if len(image_of_text) != num_texts:
        raise ConfigError(f"{num_texts} texts, but the images of {len(image_of_text)} are given")
    missing = np.setdiff1d(np.arange(num_images), image_of_text)
    unknown = np.setdiff1d(image_of_text, np.arange(num_images))
    if len(missing) or len(unknown):
        raise ConfigError(
            f"images without a text: {missing[:5].tolist()}; texts of images that are not there: "
            f"{unknown[:5].tolist()}; expected every image to have at least one text"
        )
