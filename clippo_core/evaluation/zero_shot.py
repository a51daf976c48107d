"""Zero-shot classification: the nearest class name, as text, decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from clippo_core.errors import ConfigError, SampleError


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Predicted class of every image, and the share that is right."""

    predictions: Int[np.ndarray, " image"]
    labels: Int[np.ndarray, " image"]
    num_classes: int

    @property
    def accuracy(self) -> float:
        """Share of images whose nearest class is their own."""
        return float((self.predictions == self.labels).mean())

    @property
    def confusion(self) -> Int[np.ndarray, "label prediction"]:
        """How many images of each class were taken for each class."""
        flat = self.labels * self.num_classes + self.predictions
        counts = np.bincount(flat, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)


def class_embeddings(
    text_embeddings: Float32[np.ndarray, "text embed"], *, num_classes: int
) -> Float32[np.ndarray, "label embed"]:
    """Average each class' prompts and bring the mean back to unit length.

    Args:
        text_embeddings: unit-length embeddings of the prompts, class by class (`prompts.fill`).
        num_classes: must divide their number.

    Raises:
        ConfigError: if it does not.
    """
    if num_classes < 1 or len(text_embeddings) % num_classes:
        raise ConfigError(
            f"{len(text_embeddings)} prompts for {num_classes} classes; expected as many prompts "
            "for each"
        )
    per_class = text_embeddings.reshape(num_classes, -1, text_embeddings.shape[-1])
    means = per_class.mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def classify(
    image_embeddings: Float32[np.ndarray, "image embed"],
    classes: Float32[np.ndarray, "label embed"],
    labels: Int[np.ndarray, " image"],
) -> ZeroShotResult:
    """Give every image the class whose embedding has the largest dot product with its own.

    Source: CLIP, arXiv:2103.00020, section 3.1.2; big_vision's `discriminative_classifier`.

    Raises:
        ConfigError: if a label is not the number of a class.
        SampleError: if embeddings are no finite numbers.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ConfigError(
            f"labels run from {labels.min()} to {labels.max()}; expected 0 to {len(classes) - 1}, "
            "the numbers of the class names"
        )
    if not (np.isfinite(image_embeddings).all() and np.isfinite(classes).all()):
        raise SampleError("embeddings hold NaN or infinite numbers; the model is broken")
    predictions = (image_embeddings @ classes.T).argmax(axis=1)
    return ZeroShotResult(predictions, np.asarray(labels), len(classes))
