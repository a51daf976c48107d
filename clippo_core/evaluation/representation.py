"""A model seen from inside: where it puts images and texts, and its first layer's filters."""

# NumPy and torch leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import require_finite
from clippo_core.modeling import PairModel


@dataclass(frozen=True, eq=False)
class ModalityGap:
    """The distance between images and texts as a whole, with values to compare it with.

    Attributes:
        gap: distance between the centroids of image and text embeddings, 0 to 2.
        floor: distance between the centroids of the two halves of the images (every other one),
            which no gap explains.
        pair_similarity: mean cosine of an image and its text.
        images_2d: projection of the images on the two main axes of all embeddings.
        texts_2d: projection of the texts.
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
    """Measure the distance between images and texts over pairs of them.

    Source: "Mind the Gap" (arXiv:2203.02053), section 2, whose definition the paper follows.

    Args:
        image_embeddings: unit-length embeddings.
        text_embeddings: unit-length embeddings, in the order of the images.

    Raises:
        ConfigError: if there are fewer than two pairs.
        SampleError: if embeddings are no finite numbers.
    """
    images, texts = image_embeddings.astype(np.float64), text_embeddings.astype(np.float64)
    if len(images) < 2:
        raise ConfigError(f"{len(images)} pairs; a gap needs two or more")
    require_finite(images, texts)
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


@dataclass(frozen=True, eq=False)
class PatchFilters:
    """The main directions among the first layer's filters.

    Attributes:
        pictures: each direction scaled by its largest weight, so that grey 127 is no weight.
        explained: share of the filters' variance that lies in each direction.
        colour_share: share of each direction's squared weights that grey pixels do not see: 0 for a
            filter of brightness alone, as text needs.
    """

    pictures: UInt8[np.ndarray, "filter patch_px patch_px 3"]
    explained: Float[np.ndarray, " filter"]
    colour_share: Float[np.ndarray, " filter"]


def patch_filters(model: PairModel, *, num_filters: int = 28) -> PatchFilters:
    """Return the principal components of the patch embedding's filters.

    Source: ViT (arXiv:2010.11929), figure 7 on the left, which the paper draws for CLIPPO.

    Args:
        model: model whose first layer is looked at.
        num_filters: largest number of components; there are no more than the model's width, or than
            weights in a patch.
    """
    kernel = model.encoder.patch_embedding.kernel.detach().float().cpu().numpy()
    filters = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    centred = filters - filters.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    explained = singular**2 / max((singular**2).sum(), np.finfo(np.float32).tiny)
    shown = components[:num_filters].reshape(-1, *kernel.shape[:3])
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    grey = shown.mean(axis=3)
    return PatchFilters(
        pictures=np.round(shown / largest * 127 + 127).astype(np.uint8),
        explained=explained[: len(shown)],
        # A component has unit length, and its grey part three equal channels.
        colour_share=1 - 3 * (grey**2).sum(axis=(1, 2)),
    )
