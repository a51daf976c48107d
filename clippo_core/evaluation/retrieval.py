"""Retrieval: recall@k between images and texts, several texts per image allowed."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import require_finite

#: Returns the similarity of a slice of the queries to every candidate.
SimilarityOf = Callable[[slice], Float[np.ndarray, "query candidate"]]


def retrieval_recall(
    image_embeddings: Float32[np.ndarray, "image embed"],
    text_embeddings: Float32[np.ndarray, "text embed"],
    image_of_text: Int[np.ndarray, " _"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    block_rows: int = 512,
) -> dict[str, float]:
    """Compute recall@k in both directions.

    An image counts as found if any of its texts is among the `k` nearest texts; a text, if its
    image is among the `k` nearest images. Of equal similarities the earlier candidate is nearer.

    Args:
        image_embeddings: unit length.
        text_embeddings: unit length.
        image_of_text: the image that each text describes.
        ks: how many candidates count.
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
    images, texts = image_embeddings, text_embeddings
    return _both_directions(
        lambda rows: images[rows] @ texts.T,
        lambda rows: texts[rows] @ images.T,
        image_of_text,
        ks=ks,
        block_rows=block_rows,
    )


def recall_of_similarity(
    similarity: Float[np.ndarray, "image text"],
    image_of_text: Int[np.ndarray, " _"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    block_rows: int = 512,
) -> dict[str, float]:
    """Compute what `retrieval_recall` does, for a similarity matrix that is at hand."""
    num_images, num_texts = similarity.shape
    _check(image_of_text, num_images=num_images, num_texts=num_texts)
    return _both_directions(
        lambda rows: similarity[rows],
        lambda rows: similarity.T[rows],
        image_of_text,
        ks=ks,
        block_rows=block_rows,
    )


def retrieval_chance(
    image_of_text: Int[np.ndarray, " text"], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return the recalls of a random order of the candidates, named as by `retrieval_recall`.

    Args:
        image_of_text: the image that each text describes; every image has a text.
        ks: how many candidates count.
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


def _both_directions(
    texts_of: SimilarityOf,
    images_of: SimilarityOf,
    image_of_text: Int[np.ndarray, " text"],
    *,
    ks: Sequence[int],
    block_rows: int,
) -> dict[str, float]:
    images = np.arange(image_of_text.max() + 1)
    ranks = {
        "image_to_text": _best_ranks(texts_of, images, image_of_text, block_rows),
        "text_to_image": _best_ranks(images_of, image_of_text, images, block_rows),
    }
    return {f"{name}_recall@{k}": float((r < k).mean()) for name, r in ranks.items() for k in ks}


def _best_ranks(
    similarity_of: SimilarityOf,
    image_of_query: Int[np.ndarray, " query"],
    image_of_candidate: Int[np.ndarray, " candidate"],
    block_rows: int,
) -> Int[np.ndarray, " query"]:
    """Count the candidates before the nearest one of the same image, for each query."""
    ranks = np.empty(len(image_of_query), np.int64)
    for start in range(0, len(ranks), block_rows):
        rows = slice(start, min(start + block_rows, len(ranks)))
        similarity = similarity_of(rows)
        require_finite(similarity)
        is_right = image_of_query[rows, None] == image_of_candidate
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
