from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.retrieval import retrieval_chance, retrieval_recall
from clippo_core.evaluation.zero_shot import TEMPLATES, class_embeddings, classify, fill


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def recall_of_similarity(similarity: np.ndarray, image_of_text: np.ndarray, **options):
    """With these texts, a picture's embedding is its similarity to each of them."""
    texts = np.eye(similarity.shape[1], dtype=np.float32)
    return retrieval_recall(similarity.astype(np.float32), texts, image_of_text, **options)


def recall_slowly(similarity: np.ndarray, image_of_text: np.ndarray, k: int) -> tuple[float, float]:
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    image_to_text = np.mean([i in image_of_text[row] for i, row in enumerate(order)])
    order = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
    text_to_image = np.mean([image_of_text[t] in row for t, row in enumerate(order)])
    return float(image_to_text), float(text_to_image)


@given(seed=st.integers(0, 1000), num_images=st.integers(1, 12), block_rows=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_recall_equals_sorting_ties_included(seed: int, num_images: int, block_rows: int):
    generator = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(num_images), generator.integers(1, 4, num_images))
    # Few levels, so that many similarities are equal.
    similarity = generator.integers(0, 4, (num_images, len(image_of_text))).astype(float)
    recalls = recall_of_similarity(similarity, image_of_text, ks=(1, 3), block_rows=block_rows)
    for k in (1, 3):
        expected = recall_slowly(similarity, image_of_text, k)
        assert (
            recalls[f"image_to_text_recall@{k}"],
            recalls[f"text_to_image_recall@{k}"],
        ) == expected


def test_a_broken_model_finds_nothing():
    broken = np.full((3, 4), np.nan, np.float32)
    with pytest.raises(SampleError, match="NaN"):
        retrieval_recall(broken, broken, np.arange(3))
    with pytest.raises(SampleError, match="NaN"):
        classify(broken, broken, np.arange(3))


@pytest.mark.parametrize("image_of_text", [[0, 0, 1], [0, 1, 2, 3], [0, 1]])
def test_texts_and_images_that_do_not_match_are_refused(image_of_text):
    vectors = unit(np.ones((3, 4)))
    with pytest.raises(ConfigError):
        retrieval_recall(vectors, vectors, np.array(image_of_text))


def test_prompts_of_a_class_are_averaged_and_normalised():
    prompts = unit(np.array([[1, 0], [0, 1], [-1, 0], [-1, 0]]))
    classes = class_embeddings(prompts, num_classes=2)
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-6)
    result = classify(unit(np.array([[1, 1], [-1, 0], [1, 0]])), classes, np.array([0, 1, 1]))
    assert result.predictions.tolist() == [0, 1, 0]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.confusion.tolist() == [[1, 0], [1, 1]]


def test_labels_that_name_no_class_are_refused():
    vectors = unit(np.ones((2, 4)))
    with pytest.raises(ConfigError, match="labels run from 0 to 2"):
        classify(vectors, vectors, np.array([0, 2]))


def test_templates_are_filled_class_by_class():
    assert fill(["{}", "the {}"], ["cat", "{x}"]) == ["cat", "the cat", "{x}", "the {x}"]
    for templates in TEMPLATES.values():
        assert len(fill(templates, ["a"])) == len(templates)


@pytest.mark.parametrize("templates", [[], ["no place for the name"]])
def test_templates_without_a_place_are_refused(templates):
    with pytest.raises(ConfigError, match="templates"):
        fill(templates, ["cat"])


def test_chance_of_retrieval_is_that_of_random_orders():
    image_of_text = np.array([0, 0, 0, 1, 2, 2, 3])
    chance = retrieval_chance(image_of_text, ks=(1, 3))
    generator = np.random.default_rng(0)
    found = [
        recall_of_similarity(generator.random((4, 7)), image_of_text, ks=(1, 3)) for _ in range(400)
    ]
    for name, value in chance.items():
        assert value == pytest.approx(np.mean([f[name] for f in found]), abs=0.06)
    assert set(retrieval_chance(np.arange(3), ks=(10,)).values()) == {1.0}
