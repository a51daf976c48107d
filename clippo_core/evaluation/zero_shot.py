"""Zero-shot classification: the nearest class name, as text, decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.uncertainty import Interval, proportion_interval


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Predicted class of every sample, and how near its own class is.

    Attributes:
        predictions: the nearest class.
        labels: the right one.
        num_classes: how many there are.
        right_ranks: how many classes are nearer than the right one.
    """

    predictions: Int[np.ndarray, " sample"]
    labels: Int[np.ndarray, " sample"]
    num_classes: int
    right_ranks: Int[np.ndarray, " sample"]

    @property
    def accuracy(self) -> float:
        """Share of samples whose nearest class is their own."""
        return float((self.predictions == self.labels).mean())

    @property
    def interval(self) -> Interval:
        """Of the accuracy, 95 %."""
        return proportion_interval(self.accuracy, len(self.labels))

    def top_k_accuracy(self, k: int) -> float:
        """Share of samples whose own class is among the `k` nearest."""
        return float((self.right_ranks < k).mean())

    @property
    def mean_class_accuracy(self) -> float:
        """Accuracy of each class that occurs, averaged."""
        counts = self.confusion.sum(axis=1)
        return float((self.confusion.diagonal()[counts > 0] / counts[counts > 0]).mean())

    @property
    def majority_floor(self) -> float:
        """What always naming the most frequent class gets."""
        return float(self.confusion.sum(axis=1).max() / len(self.labels))

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
    similarity = image_embeddings @ classes.T
    of_right = np.take_along_axis(similarity, labels[:, None], axis=1)
    # Of equal similarities the earlier class is nearer, as argmax has it.
    is_earlier = np.arange(len(classes)) < labels[:, None]
    ranks = ((similarity > of_right) | ((similarity == of_right) & is_earlier)).sum(axis=1)
    return ZeroShotResult(similarity.argmax(axis=1), labels, len(classes), ranks)
