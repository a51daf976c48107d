"""Few-shot linear classification: regularised least squares on features."""

# NumPy and torch leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Float32, Float64, Int, UInt8
from PIL import Image

from clippo_core.errors import ConfigError, SampleError
from clippo_core.evaluation.scores import require_finite
from clippo_core.images import fit_image
from clippo_core.modeling import PairModel

#: Regularisers from 2^-10 to 2^20, the grid of "Big Transfer" (arXiv:1912.11370) and of big_vision
#: before it fixed one value.
L2_GRID = tuple(2.0**exponent for exponent in range(-10, 21))
#: Value of the constant feature, so large that the bias which it gets is hardly regularised.
BIAS_FEATURE = 100.0
STD_EPSILON = 1e-5
LEVERAGE_EPSILON = 1e-12


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """Accuracies on the test samples.

    Attributes:
        accuracy: accuracy with `chosen_l2`.
        chosen_l2: the regulariser that is best on the training samples, each predicted from all
            others (the largest of several).
        l2: regularisers that were tried.
        test_accuracy: accuracy with each of them, in the authors' arithmetic.
    """

    accuracy: float
    chosen_l2: float
    l2: tuple[float, ...]
    test_accuracy: tuple[float, ...]

    @property
    def best_accuracy(self) -> float:
        """Accuracy with the regulariser that is best on the test samples, as published.

        It is optimistic; compare it with published numbers only.
        """
        return max(self.test_accuracy)


def choose_shots(
    labels: Int[np.ndarray, " sample"], *, shots: int, num_classes: int, seed: int
) -> Int[np.ndarray, " chosen"]:
    """Draw `shots` samples of every class, class by class, as big_vision does for the seed.

    Raises:
        SampleError: if a class has fewer.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() < shots:
        raise SampleError(
            f"class {counts.argmin()} has {counts.min()} samples; expected at least {shots} of "
            "each for as many shots"
        )
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
    return np.concatenate([order[:shots] for order in orders])


def few_shot(
    features: Float[np.ndarray, "sample feature"],
    labels: Int[np.ndarray, " sample"],
    test_features: Float[np.ndarray, "test feature"],
    test_labels: Int[np.ndarray, " test"],
    *,
    num_classes: int,
    l2: Sequence[float] = L2_GRID,
) -> FewShotResult:
    """Fit a linear classifier to the samples for each regulariser, and test it.

    Features are whitened by the samples' mean and deviation; classes are columns of -1 and 1; the
    weights are `(X^T X + l2 I)^-1 X^T Y`, or `X^T (X X^T + l2 I)^-1 Y` where samples are fewer
    than features. One eigendecomposition serves all regularisers.

    Args:
        features: features of the training samples.
        labels: classes of the training samples.
        test_features: features of the test samples.
        test_labels: classes of the test samples.
        num_classes: number of classes.
        l2: regularisers to try.

    Raises:
        ConfigError: if a label is not the number of a class, or a regulariser is not positive.
        SampleError: if features are no finite numbers.

    Source: big_vision `evaluators/fewshot_lsr.py` at 0127fb6; equality shown in
    tests/parity/test_few_shot.py.
    """
    _check(labels, test_labels, num_classes, l2)
    require_finite(features, test_features, what="features")
    x, x_test = _whiten(features, test_features)
    y = np.where(labels[:, None] == np.arange(num_classes), 1, -1).astype(np.float32)
    # float32 and this driver, as in JAX: at the smallest regularisers the rounding decides samples.
    if len(x) >= x.shape[1]:
        eigenvalues, lhs = scipy.linalg.eigh(x.T @ x, driver="evd")
        rhs = lhs.T @ (x.T @ y)
    else:
        eigenvalues, vectors = scipy.linalg.eigh(x @ x.T, driver="evd")
        lhs, rhs = x.T @ vectors, vectors.T @ y
    # Features of low rank: rounding may bring an eigenvalue to minus the regulariser. The reference
    # divides by zero then, without a word.
    with np.errstate(divide="ignore", invalid="ignore"):
        test_accuracy = [
            _accuracy(x_test @ ((lhs / (eigenvalues + np.float32(strength))) @ rhs), test_labels)
            for strength in l2
        ]
    chosen, scores = _choose_l2(x, y, labels, x_test, l2)
    return FewShotResult(_accuracy(scores, test_labels), chosen, tuple(l2), tuple(test_accuracy))


def _whiten(
    features: Float[np.ndarray, "sample feature"], test_features: Float[np.ndarray, "test feature"]
) -> tuple[Float32[np.ndarray, "sample column"], Float32[np.ndarray, "test column"]]:
    """Scale samples and test samples by the samples' mean and deviation; add the constant."""
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    std = features.std(axis=0, dtype=np.float64).astype(np.float32) + np.float32(STD_EPSILON)
    parts = [(part.astype(np.float32) - mean) / std for part in (features, test_features)]
    x, x_test = (np.pad(p, ((0, 0), (0, 1)), constant_values=BIAS_FEATURE) for p in parts)
    return x, x_test


def _choose_l2(
    x: Float32[np.ndarray, "sample column"],
    y: Float32[np.ndarray, "sample label"],
    labels: Int[np.ndarray, " sample"],
    x_test: Float32[np.ndarray, "test column"],
    l2: Sequence[float],
) -> tuple[float, Float64[np.ndarray, "test label"]]:
    """Return the regulariser that predicts left-out samples best, and its scores of test samples.

    A ridge's residual of a left-out sample is its own divided by one less its leverage (Allen's
    PRESS). In float64: small regularisers may be the best, and in float32 they are mostly noise.
    """
    left, singular, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    projected = left.T @ y
    found: list[tuple[float, float]] = []
    for strength in l2:
        shrinkage = singular**2 / (singular**2 + strength)
        residual = y - (left * shrinkage) @ projected
        leverage = (left**2 * shrinkage).sum(axis=1, keepdims=True)
        left_out = y - residual / np.maximum(1 - leverage, LEVERAGE_EPSILON)
        found.append((_accuracy(left_out, labels), strength))
    chosen = max(found)[1]
    weights = (right.T * (singular / (singular**2 + chosen))) @ projected
    return chosen, x_test @ weights


def _accuracy(
    scores: Float[np.ndarray, "sample label"], labels: Int[np.ndarray, " sample"]
) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def _check(
    labels: Int[np.ndarray, " sample"],
    test_labels: Int[np.ndarray, " test"],
    num_classes: int,
    l2: Sequence[float],
) -> None:
    for name, found in (("labels", labels), ("test_labels", test_labels)):
        if not len(found) or not 0 <= found.min() <= found.max() < num_classes:
            raise ConfigError(f"{name} are empty, or not all from 0 to {num_classes - 1}")
    if not l2 or min(l2) <= 0:
        raise ConfigError(f"l2={tuple(l2)}; expected one positive number or more")


@torch.no_grad()
def pooled_features(
    model: PairModel,
    images: UInt8[np.ndarray, "image height_px width_px 3"]
    | Sequence[UInt8[np.ndarray, "_ _ 3"] | Image.Image],
    *,
    batch_size: int = 256,
) -> Float[np.ndarray, "image width"]:
    """Return features before the head, which the paper's linear classifiers are fitted to."""
    size, parts = model.config.render.image_size_px, []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = np.stack([fit_image(i, model.config.image, image_size_px=size) for i in batch])
        tokens = model.encoder.encode(torch.from_numpy(pixels).to(model.device))
        parts.append(model.encoder.pool(tokens).float().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def pooled_text_features(
    model: PairModel, texts: Sequence[str], *, batch_size: int = 256
) -> Float32[np.ndarray, "text width"]:
    """Return features of texts before the head, which linear classifiers are fitted to."""
    prepared, parts = model.prepare_texts(texts), []
    for start in range(0, len(texts), batch_size):
        batch = prepared.take(np.arange(start, min(start + batch_size, len(texts))))
        parts.append(model.text_features(batch).float().cpu().numpy())
    return np.concatenate(parts)
