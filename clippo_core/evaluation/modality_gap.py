"""The modality gap: how far apart the embeddings of images and of texts lie as a whole."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from clippo_core.errors import ConfigError, SampleError


@dataclass(frozen=True, eq=False)
class ModalityGap:
    """The gap, and what to hold it against.

    Attributes:
        gap: distance between the centroids of image and text embeddings, 0 to 2.
        floor: the same between the two halves of the images (every other one), which no gap
            explains.
        pair_similarity: mean cosine of an image and its text.
        images_2d: projection of the images on the two main axes of all embeddings.
        texts_2d: of the texts.
    """

    gap: float
    floor: float
    pair_similarity: float
    images_2d: Float[np.ndarray, "pair 2"]
    texts_2d: Float[np.ndarray, "pair 2"]


def modality_gap(
    image_embeddings: Float32[np.ndarray, "pair embed"],
    text_embeddings: Float32[np.ndarray, "pair embed"],
) -> ModalityGap:
    """Measure the gap over pairs of images and texts.

    Source: "Mind the Gap" (arXiv:2203.02053), section 2, whose definition the paper follows.

    Args:
        image_embeddings: unit length.
        text_embeddings: unit length, in the order of the images.

    Raises:
        ConfigError: if there are fewer than two pairs.
        SampleError: if embeddings are no finite numbers.
    """
    images, texts = image_embeddings.astype(np.float64), text_embeddings.astype(np.float64)
    if len(images) < 2:
        raise ConfigError(f"{len(images)} pairs; a gap needs two or more")
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        raise SampleError("embeddings hold NaN or infinite numbers; the model is broken")
    together = np.concatenate([images, texts])
    centred = together - together.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    images_2d, texts_2d = np.split(centred @ axes.T, 2)
    return ModalityGap(
        gap=_distance(images, texts),
        floor=_distance(images[::2], images[1::2]),
        pair_similarity=float((images * texts).sum(axis=1).mean()),
        images_2d=images_2d,
        texts_2d=texts_2d,
    )


def _distance(one: Float[np.ndarray, "_ embed"], other: Float[np.ndarray, "_ embed"]) -> float:
    return float(np.linalg.norm(one.mean(axis=0) - other.mean(axis=0)))
