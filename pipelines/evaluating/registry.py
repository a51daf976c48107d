"""The evaluations by name: each takes a model and a data set, and returns numbers and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.prompts import fill
from clippo_core.evaluation.retrieval import retrieval_recall
from clippo_core.evaluation.zero_shot import class_embeddings, classify
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from clippo_core.rejected import Rejected
from pipelines.ingest.manifest import RawSample
from pipelines.ingest.sources import Source
from pipelines.tracking.figures import label_sheet

BATCH_SIZE = 256
_IMAGES_IN_PICTURE = 40


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation may be told."""

    templates: tuple[str, ...] = ("a photo of a {}",)
    limit: int | None = None


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What an evaluation found.

    Attributes:
        metrics: by name.
        num_samples: images that took part.
        num_rejected: images that could not be decoded.
        details: further JSON, such as accuracy per class.
        picture: something to look at.
    """

    metrics: dict[str, float]
    num_samples: int
    num_rejected: int
    details: dict[str, Any] = field(default_factory=dict)
    picture: UInt8[np.ndarray, "height_px width_px 3"] | None = None


Evaluation = Callable[[Clippo, Source, EvaluationOptions], TaskResult]


def zero_shot(model: Clippo, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify pictures by the nearest class name.

    Raises:
        SampleError: if the data set has no classes.
    """
    names = source.manifest.class_names
    if not names:
        raise SampleError(f"{source.name} has no class names; zero_shot needs a set with classes")
    prompts = model.encode_texts(fill(options.templates, names), batch_size=BATCH_SIZE)
    classes = class_embeddings(prompts, num_classes=len(names))
    embedded = embed_source(model, source, limit=options.limit)
    labels = [sample.class_id for sample in embedded.samples]
    if None in labels:
        raise SampleError(
            f"{source.name} has samples without a class, {labels.count(None)} of them"
        )
    result = classify(embedded.images, classes, np.array(labels))
    right = result.confusion.diagonal() / np.maximum(result.confusion.sum(axis=1), 1)
    shown = slice(_IMAGES_IN_PICTURE)
    captions = [
        (names[predicted], predicted == label)
        for predicted, label in zip(result.predictions[shown], result.labels[shown], strict=True)
    ]
    return TaskResult(
        metrics={"accuracy": result.accuracy, "chance_accuracy": 1 / len(names)},
        num_samples=len(labels),
        num_rejected=embedded.num_rejected,
        details={
            "templates": list(options.templates),
            "accuracy_per_class": dict(zip(names, right.tolist(), strict=True)),
            "confusion": result.confusion.tolist(),
        },
        picture=label_sheet(embedded.shown[: len(captions)], captions),
    )


def retrieval(model: Clippo, source: Source, options: EvaluationOptions) -> TaskResult:
    """Find the captions of each picture, and the picture of each caption.

    Raises:
        SampleError: if a picture has no caption.
    """
    embedded = embed_source(model, source, limit=options.limit)
    captions = [[c for c in sample.captions or [] if c] for sample in embedded.samples]
    bare = [s.key for s, found in zip(embedded.samples, captions, strict=True) if not found]
    if bare:
        raise SampleError(f"{source.name}: {len(bare)} pictures have no caption, e.g. {bare[0]}")
    image_of_text = np.repeat(np.arange(len(captions)), [len(found) for found in captions])
    texts = model.encode_texts(list(itertools.chain(*captions)), batch_size=BATCH_SIZE)
    recalls = retrieval_recall(embedded.images, texts, image_of_text)
    return TaskResult(
        metrics=recalls | {"chance_text_to_image_recall@1": 1 / len(captions)},
        num_samples=len(captions),
        num_rejected=embedded.num_rejected,
        details={"num_texts": len(image_of_text)},
    )


EVALUATIONS: dict[str, Evaluation] = {"zero_shot": zero_shot, "retrieval": retrieval}


def find_evaluation(name: str) -> Evaluation:
    """The evaluation of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in EVALUATIONS:
        raise ConfigError(f"no evaluation is called {name!r}; there are {sorted(EVALUATIONS)}")
    return EVALUATIONS[name]


@dataclass(frozen=True, eq=False)
class EmbeddedSource:
    """The usable pictures of a data set, embedded; some of them as pixels, to be shown."""

    images: Float32[np.ndarray, "image embed"]
    samples: list[RawSample]
    num_rejected: int
    shown: UInt8[np.ndarray, "image height_px width_px 3"]


def embed_source(model: Clippo, source: Source, *, limit: int | None) -> EmbeddedSource:
    """Decode and embed the pictures of a data set, batch by batch.

    Raises:
        SampleError: if none can be decoded.
    """
    embeddings, samples, shown, num_seen = [], [], None, 0
    for batch in _batches(itertools.islice(source, limit), BATCH_SIZE):
        num_seen += len(batch)
        size = model.config.render.image_size_px
        decoded = [decode_image(s.image, model.config.image, image_size_px=size) for s in batch]
        usable = [not isinstance(pixels, Rejected) for pixels in decoded]
        pixels = [p for p in decoded if not isinstance(p, Rejected)]
        if not pixels:
            continue
        samples += list(itertools.compress(batch, usable))
        embeddings.append(model.encode_images(np.stack(pixels), batch_size=BATCH_SIZE))
        shown = np.stack(pixels[:_IMAGES_IN_PICTURE]) if shown is None else shown
    if shown is None:
        raise SampleError(f"{source.name}: not one of {num_seen} pictures can be decoded")
    return EmbeddedSource(np.concatenate(embeddings), samples, num_seen - len(samples), shown)


def _batches(samples: Iterator[RawSample], size: int) -> Iterator[Sequence[RawSample]]:
    while batch := list(itertools.islice(samples, size)):
        yield batch
