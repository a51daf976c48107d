"""The typographic attack: a wrong class name, drawn on the photo, as the model reads text."""

# NumPy leaves types of shapes unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import Interval, proportion_interval
from clippo_core.evaluation.zero_shot import classify
from clippo_core.modeling import PairModel
from clippo_core.rendering import TextRenderer
from clippo_core.rendering.unifont import GLYPH_PX

#: Blank pixels around the word.
_MARGIN_PX = 2
#: Pixels that a pixel of a glyph takes along each side; fewer where the label would cover more than
#: half of the height or does not fit the width.
_SCALE = 2


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Accuracies with and without written words, and the predictions that the words change.

    Attributes:
        accuracy: accuracy on the photos as they are.
        attacked_accuracy: accuracy on the photos with a wrong class name.
        blank_accuracy: accuracy on the photos with an empty label, which shows what the covered
            pixels cost.
        flip_rate: share of photos that are taken for the written class, and were not before.
        blank_flip_rate: the same share under empty labels, which covering alone brings about.
        flip_interval: the 95 % interval of the flip rate.
        written: the class written on each photo.
        attacked: photos with words, to be shown.
        attacked_predictions: class that each attacked photo is taken for.
    """

    accuracy: float
    attacked_accuracy: float
    blank_accuracy: float
    flip_rate: float
    blank_flip_rate: float
    flip_interval: Interval
    written: Int[np.ndarray, " image"]
    attacked: UInt8[np.ndarray, "image height_px width_px 3"]
    attacked_predictions: Int[np.ndarray, " image"]


def draw_words(
    images: UInt8[np.ndarray, "image height_px width_px 3"],
    words: Sequence[str],
    renderer: TextRenderer,
    *,
    is_blank: bool = False,
) -> UInt8[np.ndarray, "image height_px width_px 3"]:
    """Return the pictures with a word on a label at the lower left of each.

    Args:
        images: pictures of the canvas' size.
        words: word of each picture.
        renderer: draws the word as the model knows text, but larger.
        is_blank: leave the labels empty.

    Raises:
        ConfigError: if pictures are not of the canvas' size, or there are not as many words.
    """
    size = renderer.config.image_size_px
    if images.shape[1:3] != (size, size) or len(images) != len(words):
        raise ConfigError(
            f"{len(words)} words for pictures {images.shape}; expected one for each, and pictures "
            f"of {size}x{size}"
        )
    drawn, background = images.copy(), renderer.config.background
    rasters = renderer.render_batch(words)
    texts = rasters.to_pixels()
    for canvas, text, rows in zip(drawn, texts, rasters.occupied_rows, strict=True):
        inked = np.flatnonzero((text != background).any(axis=0))
        width = min(int(inked.max(initial=0)) + 1 + _MARGIN_PX, size)
        label = text[: max(int(rows), 1) * GLYPH_PX, :width]
        factor = max(min(_SCALE, size // width, size // 2 // len(label)), 1)
        label = label.repeat(factor, axis=0).repeat(factor, axis=1)[:size]
        canvas[size - len(label) :, : label.shape[1]] = background if is_blank else label[..., None]
    return drawn


def typographic_attack(
    model: PairModel,
    images: UInt8[np.ndarray, "image height_px width_px 3"],
    labels: Int[np.ndarray, " image"],
    classes: Float32[np.ndarray, "label embed"],
    *,
    class_names: Sequence[str],
    seed: int = 0,
) -> AttackResult:
    """Classify photos with and without a wrong class name on them.

    Args:
        model: model that encodes the photos.
        images: photos of the canvas' size.
        labels: class of each photo.
        classes: embeddings of the classes (`zero_shot.embed_classes`).
        class_names: words to write.
        seed: seed of the choice among the wrong classes.

    Raises:
        ConfigError: if there is only one class, or pictures are not of the canvas' size.

    Source: "Multimodal Neurons" (distill.pub/2021/multimodal-neurons), after which the paper tries
    its models; how words are placed there is not printed.
    """
    num_classes = len(class_names)
    if num_classes < 2:
        raise ConfigError("one class alone has no wrong name; expected two or more")
    offsets = np.random.default_rng(seed).integers(1, num_classes, len(labels))
    written = (labels + offsets) % num_classes
    words = [class_names[int(number)] for number in written]
    attacked = draw_words(images, words, model.renderer)
    blank = draw_words(images, words, model.renderer, is_blank=True)
    plain, with_word, with_blank = (
        classify(model.encode_images(pictures), classes, labels)
        for pictures in (images, attacked, blank)
    )
    was_other = plain.predictions != written
    flip_rate, blank_flip_rate = (
        float((was_other & (found.predictions == written)).mean())
        for found in (with_word, with_blank)
    )
    return AttackResult(
        accuracy=plain.accuracy,
        attacked_accuracy=with_word.accuracy,
        blank_accuracy=with_blank.accuracy,
        flip_rate=flip_rate,
        blank_flip_rate=blank_flip_rate,
        flip_interval=proportion_interval(flip_rate, len(labels)),
        written=written,
        attacked=attacked,
        attacked_predictions=with_word.predictions,
    )
