"""Few-shot linear classification, beyond what the reference arrays show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.few_shot import (
    BIAS_FEATURE,
    L2_GRID,
    STD_EPSILON,
    choose_shots,
    few_shot,
    pooled_features,
)
from clippo_core.modeling import Clippo


def clusters(num: int, *, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(3, width))
    labels = np.arange(num) % 3
    noise = np.random.default_rng(seed).normal(size=(num, width))
    return (centres[labels] + 0.8 * noise).astype(np.float32), labels


def scores_slowly(x, labels, x_test, l2: float) -> np.ndarray:
    x, x_test = x.astype(float), x_test.astype(float)
    y = np.where(labels[:, None] == np.arange(3), 1, -1)
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return x_test @ weights


def whiten(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    scaled = (other - x.mean(0)) / (x.std(0) + STD_EPSILON)
    return np.concatenate([scaled, np.full((len(other), 1), BIAS_FEATURE)], axis=1)


@pytest.mark.parametrize("width", [5, 40])
def test_it_equals_the_normal_equations_and_leaving_each_sample_out(width: int):
    x, labels = clusters(30, width=width, seed=1)
    x_test, test_labels = clusters(60, width=width, seed=2)
    l2 = (0.1, 10.0, 1000.0)
    found = few_shot(x, labels, x_test, test_labels, num_classes=3, l2=l2)
    x, x_test = whiten(x, x), whiten(x, x_test)
    left_out_accuracy = {}
    for number, strength in enumerate(l2):
        right = scores_slowly(x, labels, x_test, strength).argmax(1) == test_labels
        assert found.test_accuracy[number] == right.mean()
        left_out = [
            scores_slowly(np.delete(x, i, 0), np.delete(labels, i), x[i : i + 1], strength).argmax()
            for i in range(30)
        ]
        left_out_accuracy[strength] = ((left_out == labels).mean(), strength)
    assert found.chosen_l2 == max(left_out_accuracy, key=lambda s: left_out_accuracy[s])
    assert found.accuracy == found.test_accuracy[l2.index(found.chosen_l2)]
    assert found.best_accuracy == max(found.test_accuracy)


def test_the_regulariser_is_chosen_without_the_test_samples():
    x, labels = clusters(30, width=5, seed=1)
    x_test, test_labels = clusters(60, width=5, seed=2)
    found = few_shot(x, labels, x_test, (test_labels + 1) % 3, num_classes=3)
    same = few_shot(x, labels, x_test, test_labels, num_classes=3)
    assert found.chosen_l2 == same.chosen_l2
    assert found.accuracy < 0.2 < 0.6 < same.accuracy
    assert len(found.l2) == len(L2_GRID)


def test_features_that_repeat_each_other_are_fitted_all_the_same():
    x, labels = clusters(60, width=5, seed=1)
    x_test, test_labels = clusters(60, width=5, seed=2)
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 40)).astype(np.float32)
    x, x_test = (
        part @ mixing + 1e-4 * generator.normal(size=(60, 40)).astype(np.float32)
        for part in (x, x_test)
    )
    found = few_shot(x, labels, x_test, test_labels, num_classes=3)
    assert found.accuracy > 0.6


def test_shots_are_drawn_class_by_class_with_the_seed():
    labels = np.array([2, 0, 1, 0, 1, 2, 0])
    chosen = choose_shots(labels, shots=2, num_classes=3, seed=0)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(chosen.tolist())) == 6
    np.testing.assert_array_equal(chosen, choose_shots(labels, shots=2, num_classes=3, seed=0))
    with pytest.raises(SampleError, match="class 1 has 2 samples"):
        choose_shots(labels, shots=3, num_classes=3, seed=0)


def test_what_cannot_be_fitted_is_refused():
    x, labels = clusters(6, width=4, seed=0)
    with pytest.raises(ConfigError, match="test_labels"):
        few_shot(x, labels, x, labels + 1, num_classes=3)
    with pytest.raises(ConfigError, match="l2"):
        few_shot(x, labels, x, labels, num_classes=3, l2=[0.0])
    with pytest.raises(SampleError, match="NaN"):
        few_shot(x * np.nan, labels, x, labels, num_classes=3)


@torch.no_grad()
def test_pooled_features_are_what_the_head_gets(tiny_model: Clippo):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    features = pooled_features(tiny_model, images, batch_size=2)
    assert features.shape == (5, 32)
    expected = tiny_model.encoder(torch.from_numpy(images))
    torch.testing.assert_close(tiny_model.encoder.head(torch.from_numpy(features)), expected)
