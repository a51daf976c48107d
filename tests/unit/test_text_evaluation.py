"""Evaluations of texts: GLUE's metrics, pairs, classification, lengths, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from clippo_core.config import RenderConfig
from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.glue_metrics import (
    GLUE_TASKS,
    accuracy,
    f1,
    glue_average,
    matthews,
    pearson,
    score_texts,
    spearman,
)
from clippo_core.evaluation.scores import bootstrap_interval, proportion_interval
from clippo_core.evaluation.sequence_length import count_patches, sequence_lengths, share_full
from clippo_core.evaluation.zero_shot import TEMPLATES, classify, embed_classes
from clippo_core.modeling import Clippo
from clippo_core.rendering import TextRenderer
from pipelines.datasets.labels import text_of
from pipelines.datasets.manifest import RawSample


def test_classification_metrics_are_those_of_the_counts():
    predictions, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 0, 1, 1])
    both, only_said, only_true, neither = 2, 1, 1, 2
    assert accuracy(predictions, labels) == pytest.approx(4 / 6)
    assert f1(predictions, labels) == pytest.approx(2 * both / (2 * both + only_said + only_true))
    product = (both + only_said) * (both + only_true) * (neither + only_said)
    root = (product * (neither + only_true)) ** 0.5
    expected = (both * neither - only_said * only_true) / root
    assert matthews(predictions, labels) == pytest.approx(expected)


def test_correlations_see_order_or_line_and_nothing_in_a_constant():
    scores = np.array([0.0, 1, 2, 5])
    assert pearson(2 * scores + 1, scores) == pytest.approx(1)
    assert spearman(np.exp(scores), scores) == pytest.approx(1)
    assert pearson(np.exp(scores), scores) < 0.99
    assert spearman(np.ones(4), scores) == pearson(np.ones(4), scores) == 0


def test_scores_come_with_floors_and_intervals():
    generator = np.random.default_rng(0)
    labels = (generator.random(200) < 0.7).astype(np.int64)
    predictions = np.where(generator.random(200) < 0.9, labels, 1 - labels)
    found = score_texts(predictions, labels, GLUE_TASKS["mrpc"])
    assert list(found.scores) == ["f1", "accuracy"]
    assert found.floors["accuracy"] == labels.mean()
    low, high = found.intervals["accuracy"]
    assert low < found.scores["accuracy"] < high
    assert 0.05 < high - low < 0.15
    similar = score_texts(labels + generator.normal(size=200), labels * 1.0, GLUE_TASKS["sts-b"])
    assert similar.floors == {"spearman": 0, "pearson": 0}


def test_scores_of_nothing_or_of_a_broken_model_are_refused():
    with pytest.raises(ConfigError, match="2 predictions for 3"):
        score_texts(np.zeros(2, int), np.zeros(3, int), GLUE_TASKS["rte"])
    with pytest.raises(SampleError, match="NaN"):
        score_texts(np.full(3, np.nan), np.ones(3), GLUE_TASKS["sts-b"])


def test_the_average_is_over_nine_columns_or_none():
    columns = [(name, split) for name, task in GLUE_TASKS.items() for split in task.sets]
    assert len(columns) == 9
    # PIXEL's published table (arXiv:2207.06991), without WNLI.
    pixel = dict(zip(columns, [78.1, 78.9, 84.5, 87.8, 89.6, 38.4, 81.1, 88.2, 60.5], strict=True))
    assert glue_average(pixel) == pytest.approx((10 * 74.09 - 53.8) / 9, abs=0.01)
    del pixel["qnli", "dev"]
    with pytest.raises(ConfigError, match="qnli/dev"):
        glue_average(pixel)


def test_a_pair_is_one_text_in_which_both_sentences_count(tiny_model: Clippo):
    pairs = [text_of(RawSample("k", None, pair)) for pair in (["a", "b"], ["a", "c"], ["b", "a"])]
    texts = [text for text in pairs if isinstance(text, str)]
    assert len(set(texts)) == 3
    embeddings = tiny_model.encode_texts(texts)
    assert np.abs(np.diff(embeddings, axis=0)).max(axis=1).min() > 1e-4


def test_texts_that_reach_the_last_row_are_counted(tiny_model: Clippo):
    rasters = tiny_model.renderer.render_batch(["short", "words " * 50, "", "words " * 60])
    assert share_full(rasters) == 0.5


def test_a_text_is_most_similar_to_itself(tiny_model: Clippo):
    texts = ["a red car", "ein rotes Auto", ""]
    embeddings = tiny_model.encode_texts(texts)
    similarities = embeddings @ embeddings.T
    np.testing.assert_allclose(similarities.diagonal(), 1, atol=1e-5)
    assert (similarities[[0, 2], [2, 0]] < 0.999).all()


def test_texts_get_the_class_that_they_name(tiny_model: Clippo):
    names = ["positive", "negative", "neutral"]
    labels = np.array([2, 0, 1, 0])
    texts = [names[label] for label in labels]
    classes = embed_classes(tiny_model, names, ["{}"])
    found = classify(tiny_model.encode_texts(texts), classes, labels)
    assert found.accuracy == found.top_k_accuracy(1) == 1
    assert found.floors == {"chance": 1 / 3, "most frequent class": 0.5}
    assert found.interval[0] < 1
    several = embed_classes(tiny_model, names, TEMPLATES["sentiment5"])
    assert several.shape == classes.shape


@pytest.mark.parametrize("patch_size_px", [8, 16, 20, 32])
def test_patches_with_ink_are_those_of_the_pixels(patch_size_px: int):
    renderer = TextRenderer(RenderConfig(image_size_px=160))
    rasters = renderer.render_batch(["a b", "", "語 " * 30, "word " * 40])
    ink = rasters.to_pixels() != renderer.config.background
    grid = ink.reshape(4, 160 // patch_size_px, patch_size_px, -1, patch_size_px)
    expected = grid.any(axis=(2, 4)).sum(axis=(1, 2))
    np.testing.assert_array_equal(count_patches(rasters, patch_size_px=patch_size_px), expected)


def test_lengths_are_means_per_language_that_no_canvas_cuts():
    renderer = TextRenderer(RenderConfig(image_size_px=64))
    long = "all human beings are born free and equal in dignity and rights. " * 30
    texts = {"en": ["free and equal", long], "zh": ["人人生而自由"]}
    found = sequence_lengths(texts, renderer, {"words": lambda text: len(text.split())})
    assert found["en"].mean["characters"] == (14 + len(long)) / 2
    assert found["en"].mean["words"] == (3 + 12 * 30) / 2
    assert found["en"].mean["patches"] > len(long) * 5 / 16 / 2
    assert found["zh"].mean["patches"] == 6
    assert found["zh"].ratio("words") == 6
    with pytest.raises(ConfigError, match="'de' has no texts"):
        sequence_lengths({"de": []}, renderer, {})
    with pytest.raises(ConfigError, match="patches"):
        sequence_lengths(texts, renderer, {"patches": len})


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    samples = generator.random((200, 100)) < 0.8
    wilson = [proportion_interval(float(s.mean()), 100) for s in samples]
    bootstrap = [
        bootstrap_interval(lambda a: float(a.mean()), s, num_resamples=100) for s in samples[:100]
    ]
    for intervals in (wilson, bootstrap):
        assert np.mean([low <= 0.8 <= high for low, high in intervals]) > 0.88
    assert proportion_interval(1.0, 10)[0] < 0.8
    for interval in (
        lambda: proportion_interval(0.5, 0),
        lambda: bootstrap_interval(len, samples[:0]),
    ):
        with pytest.raises(ConfigError, match="no samples"):
            interval()
