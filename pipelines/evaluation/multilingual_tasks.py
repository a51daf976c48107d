"""Classification of pictures by the names that classes have in many languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, UInt8

from clippo_core.encoding import BATCH_SIZE
from clippo_core.errors import SampleError
from clippo_core.evaluation.behaviour import with_typos
from clippo_core.evaluation.scores import mean_interval
from clippo_core.evaluation.scripts import languages_by_script
from clippo_core.evaluation.zero_shot import classify
from clippo_core.modeling import PairModel
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import Source
from pipelines.evaluation.embedded import EmbeddedSource, embed_source
from pipelines.evaluation.results import TaskResult, labels_of
from pipelines.figures.charts import bars
from pipelines.figures.sheets import grey_to_rgb, label_sheet

#: Accuracy from which on a language counts as one that the model reads.
READ_FROM = 0.7
_SCRIPTS_IN_PICTURE = 20


def multilingual_zero_shot(
    model: PairModel, source: Source, options: EvaluationOptions
) -> TaskResult:
    """Classify pictures by the nearest class name, in one language after the other.

    The names are taken as they are, since templates are of one language; and once more with a typo
    in each. Languages that were kept out of training are reported apart.

    Raises:
        SampleError: if the classes of the data set have no names in languages.
    """
    captions = source.manifest.class_captions
    if not captions:
        raise SampleError(
            f"{source.name} has no class names in languages (class_captions in its manifest); "
            "multilingual_zero_shot needs a set such as fashion_mnist/test"
        )
    embedded = embed_source(model, source, limit=options.limit)
    labels = labels_of(source, [sample.class_id for sample in embedded.samples])
    texts = sorted({name for row in captions.values() for name in row if name})
    vectors = dict(zip(texts, model.encode_texts(texts, batch_size=BATCH_SIZE), strict=True))
    typos = [with_typos(text, seed=number) for number, text in enumerate(texts)]
    mistyped = dict(zip(texts, model.encode_texts(typos, batch_size=BATCH_SIZE), strict=True))
    accuracies, with_typo = (
        {
            language: _accuracy(embedded.images, labels, row, of)
            for language, row in captions.items()
        }
        for of in (vectors, mistyped)
    )
    held_out = set(source.manifest.held_out_languages)
    groups = {"": [c for c in captions if c not in held_out], "held_out_": sorted(held_out)}
    metrics: dict[str, float] = {}
    intervals = {}
    for prefix, languages in groups.items():
        if not languages:
            continue
        values = np.array([accuracies[language] for language in languages])
        metrics |= {
            f"{prefix}accuracy": float(values.mean()),
            f"{prefix}least_accuracy": float(values.min()),
            f"{prefix}languages_read": float((values >= READ_FROM).sum()),
            f"{prefix}languages": float(len(values)),
            f"{prefix}deviation_over_languages": float(values.std()),
            f"{prefix}typo_accuracy": float(np.mean([with_typo[c] for c in languages])),
        }
        intervals[f"{prefix}accuracy"] = mean_interval(values)
    chance = 1 / max(sum(map(bool, row)) for row in captions.values())
    return TaskResult(
        metrics=metrics,
        less_is_better=tuple(name for name in metrics if name.endswith("deviation_over_languages")),
        num_samples=len(labels),
        num_rejected=embedded.num_rejected,
        floors={name: {"chance": chance} for name in metrics if name.endswith("accuracy")},
        intervals=intervals,
        details={
            "per_language": {
                language: {
                    "accuracy": value,
                    "typo_accuracy": with_typo[language],
                    "held_out": float(language in held_out),
                }
                for language, value in accuracies.items()
            },
            "read_from": READ_FROM,
        },
        pictures={
            "scripts": _draw_scripts(source, accuracies),
            "words": _draw_words(model, embedded, labels, vectors),
        },
    )


def _accuracy(
    images: Float32[np.ndarray, "image embed"],
    labels: Int[np.ndarray, " image"],
    names: Sequence[str],
    vectors: Mapping[str, Float32[np.ndarray, " embed"]],
) -> float:
    """Return the accuracy among the classes that a language names, on the pictures of these."""
    named = [number for number, name in enumerate(names) if name]
    place = np.full(len(names), -1)
    place[named] = range(len(named))
    chosen = place[labels] >= 0
    classes = np.stack([vectors[names[number]] for number in named])
    return classify(images[chosen], classes, place[labels[chosen]]).accuracy


def _draw_scripts(
    source: Source, accuracies: Mapping[str, float]
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Draw the accuracies of each script's languages, and last those of the held-out ones."""
    held_out = source.manifest.held_out_languages
    groups = languages_by_script(_trained(source))
    if held_out:
        groups["held out"] = list(held_out)
    rows = {}
    for name, languages in groups.items():
        values = [accuracies[language] for language in languages]
        mean = float(np.mean(values))
        rows[f"{name} {len(values)}"] = {"mean of its languages": mean, "least": min(values)}
    return bars(rows, title="accuracy by script, and its number of languages")


def _trained(source: Source) -> dict[str, tuple[str, ...]]:
    """Return the class names in the languages that are trained on."""
    held_out, captions = source.manifest.held_out_languages, source.manifest.class_captions
    return {language: names for language, names in captions.items() if language not in held_out}


def _draw_words(
    model: PairModel,
    embedded: EmbeddedSource,
    labels: Int[np.ndarray, " image"],
    vectors: Mapping[str, Float32[np.ndarray, " embed"]],
) -> UInt8[np.ndarray, "height_px width_px 3"]:
    """Draw words of many scripts as the model sees them, each with the picture that it finds."""
    captions = _trained(embedded.source)
    chosen = list(languages_by_script(captions).items())[:_SCRIPTS_IN_PICTURE]
    words: list[tuple[str, int, str]] = []
    for turn, (script, of_script) in enumerate(chosen):
        language = of_script[len(of_script) // 2]
        named = [number for number, name in enumerate(captions[language]) if name]
        number = named[turn % len(named)]
        words.append((captions[language][number], number, f"{script}, {language}"))
    queries = np.stack([vectors[word] for word, _, _ in words])
    nearest = (queries @ embedded.images.T).argmax(axis=1)
    pixels = embedded.decoded_again(model, nearest)
    drawn = grey_to_rgb(model.renderer.render_batch([word for word, _, _ in words]).to_pixels())
    captions_below = [
        (label, bool(labels[found] == number))
        for (_, number, label), found in zip(words, nearest, strict=True)
    ]
    return label_sheet(np.concatenate([drawn, pixels], axis=2), captions_below, columns=5)
