"""Retrieval: recall@k between images and texts, several texts per image allowed."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from clippo_core.errors import ConfigError, SampleError

#: Rows of a slice of queries -> their similarity to every candidate.
SimilarityOf = Callable[[slice], Float[np.ndarray, "query candidate"]]
#: Rows of a slice of queries -> which candidates are right for each.
RightOf = Callable[[slice], Bool[np.ndarray, "query candidate"]]


def retrieval_recall(
    image_embeddings: Float32[np.ndarray, "image embed"],
    text_embeddings: Float32[np.ndarray, "text embed"],
    image_of_text: Int[np.ndarray, " _"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    block_rows: int = 512,
) -> dict[str, float]:
    """Recall@k in both directions.

    An image counts as found if any of its texts is among the `k` nearest texts; a text, if its
    image is among the `k` nearest images. Of equal similarities the earlier candidate is nearer.

    Args:
        image_embeddings: unit-length embeddings.
        text_embeddings: unit-length embeddings.
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
        num_images=len(images),
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
    """`retrieval_recall` for a similarity matrix that is at hand."""
    num_images, num_texts = similarity.shape
    _check(image_of_text, num_images=num_images, num_texts=num_texts)
    return _both_directions(
        lambda rows: similarity[rows],
        lambda rows: similarity.T[rows],
        image_of_text,
        num_images=num_images,
        ks=ks,
        block_rows=block_rows,
    )


def retrieval_chance(
    image_of_text: Int[np.ndarray, " text"], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """What a random order of the candidates gets, by the names that `retrieval_recall` gives.

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
    num_images: int,
    ks: Sequence[int],
    block_rows: int,
) -> dict[str, float]:
    images = np.arange(num_images)

    def is_right_text(rows: slice) -> Bool[np.ndarray, "image text"]:
        return images[rows, None] == image_of_text

    def is_right_image(rows: slice) -> Bool[np.ndarray, "text image"]:
        return image_of_text[rows, None] == images

    directions = {
        "image_to_text": (texts_of, is_right_text, num_images),
        "text_to_image": (images_of, is_right_image, len(image_of_text)),
    }
    recalls: dict[str, float] = {}
    for name, (similarity_of, right_of, num_queries) in directions.items():
        ranks = _best_ranks(similarity_of, right_of, num_queries, block_rows)
        recalls |= {f"{name}_recall@{k}": float((ranks < k).mean()) for k in ks}
    return recalls


def _best_ranks(
    similarity_of: SimilarityOf, right_of: RightOf, num_queries: int, block_rows: int
) -> Int[np.ndarray, " query"]:
    """How many candidates come before the nearest right one, for each query."""
    ranks = np.empty(num_queries, np.int64)
    for start in range(0, num_queries, block_rows):
        rows = slice(start, min(start + block_rows, num_queries))
        similarity = similarity_of(rows)
        if not np.isfinite(similarity).all():
            # A comparison with NaN is false, so that a broken model would find everything.
            raise SampleError("embeddings hold NaN or infinite numbers; the model is broken")
        # argmax takes the first of equals, which is the order of nearness here.
        of_right = np.where(right_of(rows), similarity, -np.inf)
        nearest = of_right.argmax(axis=1)[:, None]
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
