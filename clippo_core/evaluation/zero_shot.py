"""Zero-shot classification of pictures and texts: the class with the nearest prompts decides."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import (
    Interval,
    class_floors,
    proportion_interval,
    require_finite,
)
from clippo_core.modeling import PairModel

_MADE_OF = (
    *("a bad photo", "a blurry photo", "a bright photo", "a dark photo", "a good photo", "a photo"),
    *("a black and white photo", "a close-up photo", "a cropped photo", "a jpeg corrupted photo"),
    *("a low resolution photo", "a pixelated photo", "a doodle", "a drawing", "a painting"),
    *("a rendering", "a rendition", "a sculpture", "a sketch", "a tattoo", "art", "graffiti"),
    "itap",
)
_LOOKS = ("clean", "cool", "dirty", "hard to see", "large", "nice", "small", "weird")
_MADE_AS = ("cartoon", "embroidered", "origami", "plastic", "plushie", "toy")
_EIGHTY = (
    *(f"{kind} of {article} {{}}." for kind in _MADE_OF for article in ("a", "the")),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in ("a", "the")),
    *(f"{article} {material} {{}}." for material in _MADE_AS for article in ("a", "the")),
    *(f"{article} {{}} in a video game." for article in ("a", "the")),
    *("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."),
)

#: Template sets by name; `{}` is where the class name goes.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}",),
    # The seven templates that CLIP's authors found best for ImageNet together (CLIP,
    # arXiv:2103.00020, and the notebook "Prompt Engineering for ImageNet" in its repository).
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    # All templates of that notebook, in an order of our own; "itap" is "I took a picture".
    "clip80": _EIGHTY,
    # For class names such as "positive" and "negative". The paper classifies SST-2 by five prompts
    # for each sentiment, and does not print them; these are ours.
    "sentiment5": (
        "{}",
        "a {} review",
        "the review is {}",
        "the sentiment of this text is {}",
        "i found it {}",
    ),
}


def named_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates, with those of a set in the place of its name in `TEMPLATES`."""
    return tuple(one for name in templates for one in TEMPLATES.get(name, (name,)))


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Fill every class name into every template: the first class, then the second, and so on.

    Args:
        templates: templates with `{}` for the class name, or names of sets in `TEMPLATES`.
        class_names: names that go into the templates.

    Raises:
        ConfigError: if a template has no `{}`, or there is none.
    """
    templates = named_templates(templates)
    if not templates or any("{}" not in template for template in templates):
        raise ConfigError(
            f"templates={templates}; expected at least one, each with {{}} in it, "
            f"or one of {sorted(TEMPLATES)}"
        )
    return [t.replace("{}", name) for name in class_names for t in templates]


def embed_classes(
    model: PairModel, class_names: Sequence[str], templates: Sequence[str], *, batch_size: int = 256
) -> Float32[np.ndarray, "label embed"]:
    """Return the mean prompt embedding of each class, of unit length.

    Raises:
        ConfigError: if a template has no `{}`, or there is none.
    """
    prompts = model.encode_texts(fill(templates, class_names), batch_size=batch_size)
    return class_embeddings(prompts, num_classes=len(class_names))


def class_embeddings(
    text_embeddings: Float32[np.ndarray, "text embed"], *, num_classes: int
) -> Float32[np.ndarray, "label embed"]:
    """Return the mean of each class' prompts, brought back to unit length.

    Args:
        text_embeddings: unit-length embeddings of the prompts, class by class, as `fill` has them.
        num_classes: number of classes; it must divide the number of prompts.

    Raises:
        ConfigError: if the number of classes does not divide that of the prompts.
    """
    if num_classes < 1 or len(text_embeddings) % num_classes:
        raise ConfigError(
            f"{len(text_embeddings)} prompts for {num_classes} classes; expected as many prompts "
            "for each"
        )
    per_class = text_embeddings.reshape(num_classes, -1, text_embeddings.shape[-1])
    means = per_class.mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Predicted class of every sample, and the rank of its right class.

    Attributes:
        predictions: nearest class of each sample.
        labels: right class of each sample.
        num_classes: number of classes.
        right_ranks: number of classes that are nearer than the right one.
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
        """The 95 % interval of the accuracy."""
        return proportion_interval(self.accuracy, len(self.labels))

    def top_k_accuracy(self, k: int) -> float:
        """Return the share of samples whose own class is among the `k` nearest."""
        return float((self.right_ranks < k).mean())

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that occur."""
        counts = self.confusion.sum(axis=1)
        return float((self.confusion.diagonal()[counts > 0] / counts[counts > 0]).mean())

    @property
    def floors(self) -> dict[str, float]:
        """Accuracies that need no look at the samples: guessing, and the most frequent class."""
        return class_floors(self.labels, self.num_classes)

    @property
    def confusion(self) -> Int[np.ndarray, "label prediction"]:
        """Number of samples of each class (row) that were taken for each class (column)."""
        flat = self.labels * self.num_classes + self.predictions
        counts = np.bincount(flat, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)


def classify(
    embeddings: Float32[np.ndarray, "sample embed"],
    classes: Float32[np.ndarray, "label embed"],
    labels: Int[np.ndarray, " sample"],
) -> ZeroShotResult:
    """Return the classes whose embeddings have the largest dot products with the samples'.

    Source: CLIP, arXiv:2103.00020, section 3.1.2; big_vision's `discriminative_classifier`.

    Raises:
        ConfigError: if a label is not the number of a class.
        SampleError: if embeddings are no finite numbers.
    """
    require_finite(embeddings, classes)
    return classify_by_score(embeddings @ classes.T, labels)


def classify_by_score(
    scores: Float[np.ndarray, "sample label"], labels: Int[np.ndarray, " sample"]
) -> ZeroShotResult:
    """Return the class with the largest score of each sample; the first of equal ones.

    Raises:
        ConfigError: if a label is not the number of a class.
        SampleError: if scores are no finite numbers.
    """
    require_finite(scores, what="scores")
    num_classes = scores.shape[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ConfigError(
            f"labels run from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}, "
            "the numbers of the class names"
        )
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    is_earlier = np.arange(num_classes) < labels[:, None]
    ranks = ((scores > right) | ((scores == right) & is_earlier)).sum(axis=1)
    return ZeroShotResult(scores.argmax(axis=1), labels, num_classes, ranks)
