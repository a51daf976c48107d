"""Finding pictures by their captions, captions by their pictures, and texts by translations."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, UInt8

from clippo_core.encoding import BATCH_SIZE
from clippo_core.errors import SampleError
from clippo_core.evaluation.behaviour import changed_captions
from clippo_core.evaluation.retrieval import retrieval_chance, retrieval_recall
from clippo_core.evaluation.scores import proportion_interval
from clippo_core.modeling import PairModel
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import Source
from pipelines.evaluation.embedded import EmbeddedSource, captions_of, embed_source, evenly
from pipelines.evaluation.results import TaskResult, language_means, require_kind
from pipelines.figures.sheets import gallery

#: Least number of pictures with a caption in a language for that language to count.
MIN_IMAGES_PER_LANGUAGE = 100
_QUERIES_IN_PICTURE, _FOUND_IN_PICTURE = 8, 5


def retrieval(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Find the captions of each picture, and the picture of each caption.

    Raises:
        SampleError: if a picture has no caption.
    """
    embedded = embed_source(model, source, limit=options.limit)
    captions = captions_of(source, embedded.samples)
    image_of_text = np.repeat(np.arange(len(captions)), [len(found) for found in captions])
    queries = list(itertools.chain(*captions))
    texts = model.encode_texts(queries, batch_size=BATCH_SIZE)
    recalls = retrieval_recall(embedded.images, texts, image_of_text)
    shown = evenly(len(queries), _QUERIES_IN_PICTURE)
    picture = _draw_gallery(
        model, embedded, [queries[n] for n in shown], texts[shown], image_of_text[shown]
    )
    num_queries = {"image_to_text": len(captions), "text_to_image": len(queries)}
    return TaskResult(
        metrics=recalls,
        num_samples=len(captions),
        num_rejected=embedded.num_rejected,
        floors={name: {"chance": v} for name, v in retrieval_chance(image_of_text).items()},
        intervals={
            name: proportion_interval(recall, num_queries[name.partition("_recall")[0]])
            for name, recall in recalls.items()
        },
        details={"num_texts": len(image_of_text)},
        pictures={"gallery": picture},
    )


def _draw_gallery(
    model: PairModel,
    embedded: EmbeddedSource,
    queries: Sequence[str],
    texts: Float32[np.ndarray, "query embed"],
    image_of_text: Int[np.ndarray, " query"],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Draw texts with the pictures nearest to them, and mark the one that each text describes."""
    similarity = texts @ embedded.images.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :_FOUND_IN_PICTURE]
    pixels = embedded.decoded_again(model, nearest.ravel())
    return gallery(
        queries,
        pixels.reshape(*nearest.shape, *pixels.shape[1:]),
        nearest == image_of_text[:, None],
        np.take_along_axis(similarity, nearest, axis=1),
        title=f"queries, and the nearest of {len(embedded.images)} pictures with their cosine",
    )


def multilingual_retrieval(
    model: PairModel, source: Source, options: EvaluationOptions
) -> TaskResult:
    """Average recalls over languages, each among the pictures with a caption in it.

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
    rows = list(per_language.values())
    recalls = [name for name in rows[0] if name.startswith(("image_to_text", "text_to_image"))]
    columns = {f"mean_{name}": np.array([row[name] for row in rows]) for name in recalls}
    chance = float(np.mean([row["chance_recall@1"] for row in rows]))
    metrics, intervals = language_means(columns)
    return TaskResult(
        metrics=metrics,
        num_samples=len(embedded.samples),
        num_rejected=embedded.num_rejected,
        floors={name: {"chance": chance} for name in columns if name.endswith("@1")},
        intervals=intervals,
        details={"per_language": per_language},
        pictures={"gallery": _gallery_of_languages(model, embedded, captions, list(per_language))},
    )


def _gallery_of_languages(
    model: PairModel,
    embedded: EmbeddedSource,
    captions: Mapping[str, Sequence[tuple[int, str]]],
    languages: Sequence[str],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Draw a query of each of some languages, for different pictures where there are enough."""
    chosen = [languages[number] for number in evenly(len(languages), _QUERIES_IN_PICTURE)]
    pairs = [captions[name][n % len(captions[name])] for n, name in enumerate(chosen)]
    queries = [text for _, text in pairs]
    labels = [f"{text} [{language}]" for text, language in zip(queries, chosen, strict=True)]
    images = np.array([number for number, _ in pairs])
    return _draw_gallery(model, embedded, labels, model.encode_texts(queries), images)


def _recall_in(
    model: PairModel,
    images: Float32[np.ndarray, "image embed"],
    captions: Sequence[tuple[int, str]],
) -> dict[str, float]:
    """Return recalls among the pictures with a caption, their number, and the recalls of chance."""
    numbers, image_of_text = np.unique([number for number, _ in captions], return_inverse=True)
    texts = model.encode_texts([text for _, text in captions], batch_size=BATCH_SIZE)
    recalls = retrieval_recall(images[numbers], texts, image_of_text)
    return recalls | {"chance_recall@1": 1 / len(numbers), "images": float(len(numbers))}


def behaviour(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Find the caption of each picture, with captions as they are and changed.

    Capitals and typos should hardly matter; upside down, blank or swapped captions must find
    nothing. The first caption of each picture counts.

    Raises:
        SampleError: if a picture has no caption, or all have the same one.
    """
    embedded = embed_source(model, source, limit=options.limit)
    captions = [found[0] for found in captions_of(source, embedded.samples)]
    counts = Counter(captions)
    if len(counts) < 2:
        raise SampleError(f"{source.name}: all pictures have the caption {captions[0]!r}")
    found = changed_captions(model, embedded.images, captions)
    names = {change: "accuracy" if change == "none" else f"{change}_accuracy" for change in found}
    metrics = {names[change]: outcome.accuracy for change, outcome in found.items()}
    floors = {
        "chance": 1 / len(counts),
        "most frequent caption": max(counts.values()) / len(captions),
    }
    return TaskResult(
        metrics=metrics,
        num_samples=len(captions),
        num_rejected=embedded.num_rejected,
        floors=dict.fromkeys(metrics, floors),
        intervals={
            name: proportion_interval(share, len(captions)) for name, share in metrics.items()
        },
        details={
            "different_captions": len(counts),
            "similarity_to_unchanged": {change: o.similarity for change, o in found.items()},
            "caption_to_picture_recall@1": {change: o.recall for change, o in found.items()},
        },
    )


def bitext_retrieval(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Find each text's translation among those of all rows, language by language, both ways.

    All languages are compared with the one that most rows have: English, where several do. A
    language's first text in a row counts.

    Raises:
        SampleError: if no two languages have two rows in common.
    """
    require_kind(source, "bitext_retrieval", ("parallel-texts",))
    rows = [
        {language: text for language, text in reversed(pairs) if text}
        for sample in itertools.islice(source, options.limit)
        for pairs in [list(zip(sample.languages or (), sample.captions or (), strict=False))]
    ]
    counts = Counter(language for row in rows for language in row)
    pivot = max(counts, key=lambda name: (counts[name], name == "en", name), default="")
    common = [row for row in rows if len(row) > 1 and pivot in row]
    pivots = model.encode_texts([row[pivot] for row in common], batch_size=BATCH_SIZE)
    per_language: dict[str, dict[str, float]] = {}
    for language in sorted(counts.keys() - {pivot}):
        both = [number for number, row in enumerate(common) if language in row]
        if len(both) >= 2:
            texts = [common[number][language] for number in both]
            per_language[language] = _recall_between(model, pivots[both], texts)
    if not per_language:
        raise SampleError(
            f"{source.name}: no two languages have two rows in common; bitext_retrieval needs "
            "translations whose languages are named"
        )
    names = ("mean_recall@1", "from_pivot_recall@1", "to_pivot_recall@1")
    metrics, intervals = language_means(
        {name: np.array([found[name] for found in per_language.values()]) for name in names}
    )
    if len(per_language) == 1:
        (alone,) = per_language.values()
        intervals = {n: proportion_interval(alone[n], int(alone["texts"])) for n in names}
    chance = float(np.mean([found["chance_recall@1"] for found in per_language.values()]))
    return TaskResult(
        metrics=metrics,
        num_samples=len(rows),
        floors={name: {"chance": chance} for name in names},
        intervals=intervals,
        details={"pivot": pivot, "per_language": per_language},
    )


def _recall_between(
    model: PairModel, pivots: Float32[np.ndarray, "text embed"], texts: Sequence[str]
) -> dict[str, float]:
    others = model.encode_texts(texts, batch_size=BATCH_SIZE)
    found = retrieval_recall(pivots, others, np.arange(len(texts)), ks=(1,))
    there, back = found["image_to_text_recall@1"], found["text_to_image_recall@1"]
    return {
        "mean_recall@1": (there + back) / 2,
        "from_pivot_recall@1": there,
        "to_pivot_recall@1": back,
        "chance_recall@1": 1 / len(texts),
        "texts": float(len(texts)),
    }
