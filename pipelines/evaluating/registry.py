"""The evaluations by name: each takes a model and a data set, and returns numbers and pictures."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.prompts import fill
from clippo_core.evaluation.retrieval import retrieval_recall
from clippo_core.evaluation.zero_shot import class_embeddings, classify
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from clippo_core.rejected import Rejected
from pipelines.ingest.manifest import RawSample
from pipelines.ingest.sources import Source
from pipelines.tracking.figures import confusion_matrix, gallery, label_sheet

BATCH_SIZE = 256
#: Fewer make no test of a language.
MIN_IMAGES_PER_LANGUAGE = 100
_IMAGES_IN_PICTURE = 40
_QUERIES_IN_PICTURE, _FOUND_IN_PICTURE = 8, 5


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
        pictures: something to look at, by name.
    """

    metrics: dict[str, float]
    num_samples: int
    num_rejected: int
    details: dict[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, UInt8[np.ndarray, "height_px width_px 3"]] = field(
        default_factory=dict[str, Any]
    )


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
        pictures={
            "predictions": label_sheet(embedded.shown[: len(captions)], captions),
            "confusion": confusion_matrix(
                result.confusion, names, title=f"{source.name}: class (row) taken for (column)"
            ),
        },
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
    queries = list(itertools.chain(*captions))
    texts = model.encode_texts(queries, batch_size=BATCH_SIZE)
    recalls = retrieval_recall(embedded.images, texts, image_of_text)
    shown = _evenly(len(queries))
    picture = draw_gallery(
        model, embedded, [queries[n] for n in shown], texts[shown], image_of_text[shown]
    )
    return TaskResult(
        metrics=recalls | {"chance_text_to_image_recall@1": 1 / len(captions)},
        num_samples=len(captions),
        num_rejected=embedded.num_rejected,
        details={"num_texts": len(image_of_text)},
        pictures={"gallery": picture},
    )


def _evenly(count: int) -> Int[np.ndarray, " shown"]:
    """Numbers of the queries that a gallery shows."""
    chosen = np.linspace(0, count - 1, min(count, _QUERIES_IN_PICTURE))
    return np.unique(chosen.round().astype(int))


def draw_gallery(
    model: Clippo,
    embedded: EmbeddedSource,
    queries: Sequence[str],
    texts: Float32[np.ndarray, "query embed"],
    image_of_text: Int[np.ndarray, " query"],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Texts and the pictures nearest to them; right is the picture that the text describes."""
    similarity = texts @ embedded.images.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :_FOUND_IN_PICTURE]
    size = model.config.render.image_size_px
    found = [
        decode_image(embedded.samples[number].image, model.config.image, image_size_px=size)
        for number in nearest.flat
    ]
    pixels = np.stack([p for p in found if not isinstance(p, Rejected)])
    return gallery(
        queries,
        pixels.reshape(*nearest.shape, *pixels.shape[1:]),
        nearest == image_of_text[:, None],
        np.take_along_axis(similarity, nearest, axis=1),
        title=f"queries, and the nearest of {len(embedded.images)} pictures with their cosine",
    )


def multilingual_retrieval(model: Clippo, source: Source, options: EvaluationOptions) -> TaskResult:
    """Retrieval in each language by itself, among the pictures that have a caption in it; the mean.

    Source: Crossmodal-3600 (arXiv:2205.12522), as the paper evaluates on it.

    Raises:
        SampleError: if the languages of the captions are not known, or none has enough pictures.
    """
    embedded = embed_source(model, source, limit=options.limit)
    captions: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, sample in enumerate(embedded.samples):
        for language, text in zip(sample.languages or (), sample.captions or (), strict=False):
            if text:
                captions[language].append((number, text))
    per_language = {
        language: _recall_in(model, embedded.images, found)
        for language, found in sorted(captions.items())
        if len({number for number, _ in found}) >= MIN_IMAGES_PER_LANGUAGE
    }
    if not per_language:
        counts = Counter({language: len(found) for language, found in captions.items()})
        raise SampleError(
            f"{source.name}: no language has captions of {MIN_IMAGES_PER_LANGUAGE} pictures or "
            f"more; it has {dict(counts.most_common(10))}"
        )
    names = next(iter(per_language.values()))
    means = {
        f"mean_{name}": float(np.mean([found[name] for found in per_language.values()]))
        for name in names
        if name != "images"
    }
    return TaskResult(
        metrics=means | {"languages": float(len(per_language))},
        num_samples=len(embedded.samples),
        num_rejected=embedded.num_rejected,
        details={"per_language": per_language},
        pictures={"gallery": _gallery_of_languages(model, embedded, captions, list(per_language))},
    )


def _gallery_of_languages(
    model: Clippo,
    embedded: EmbeddedSource,
    captions: Mapping[str, Sequence[tuple[int, str]]],
    languages: Sequence[str],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """One query in each of some languages, all for different pictures where there are enough."""
    chosen = [languages[int(number)] for number in _evenly(len(languages))]
    pairs = [captions[name][n % len(captions[name])] for n, name in enumerate(chosen)]
    queries = [text for _, text in pairs]
    labels = [f"{text} [{language}]" for text, language in zip(queries, chosen, strict=True)]
    images = np.array([number for number, _ in pairs])
    return draw_gallery(model, embedded, labels, model.encode_texts(queries), images)


def _recall_in(
    model: Clippo, images: Float32[np.ndarray, "image embed"], captions: Sequence[tuple[int, str]]
) -> dict[str, float]:
    """Recalls among the pictures that have a caption, how many these are, and what chance finds."""
    numbers, image_of_text = np.unique([number for number, _ in captions], return_inverse=True)
    texts = model.encode_texts([text for _, text in captions], batch_size=BATCH_SIZE)
    recalls = retrieval_recall(images[numbers], texts, image_of_text)
    return recalls | {"chance_recall@1": 1 / len(numbers), "images": float(len(numbers))}


EVALUATIONS: dict[str, Evaluation] = {
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "multilingual_retrieval": multilingual_retrieval,
}


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
