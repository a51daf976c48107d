"""The checks, floors and 95 % intervals that every score needs.

An interval says how far a score may be off by the choice of test samples alone.
"""

# SciPy and NumPy leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from clippo_core.errors import ConfigError, SampleError

CONFIDENCE = 0.95
Interval = tuple[float, float]


def require_finite(*arrays: Shaped[np.ndarray, "..."], what: str = "embeddings") -> None:
    """Make sure that a model returned numbers, since comparing NaN finds anything.

    Raises:
        SampleError: if an array holds NaN or infinite numbers.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise SampleError(f"{what} hold NaN or infinite numbers; the model is broken")


def class_floors(labels: Int[np.ndarray, " sample"], num_classes: int) -> dict[str, float]:
    """Return the accuracies of guessing and of always naming the most frequent class."""
    majority = float(np.bincount(labels).max() / len(labels))
    return {"chance": 1 / num_classes, "most frequent class": majority}


def proportion_interval(proportion: float, count: int) -> Interval:
    """Return Wilson's interval of a share, such as an accuracy, of `count` independent samples.

    Raises:
        ConfigError: if there are no samples.
    """
    if count < 1:
        raise ConfigError("no samples; a share of nothing has no interval")
    # Imported here: it takes longer than all else that a driver needs of this module.
    from scipy import stats

    test = stats.binomtest(round(proportion * count), count)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Float[np.ndarray, " sample"]) -> Interval:
    """Return the interval of a mean, over samples drawn again with replacement."""
    return bootstrap_interval(lambda drawn: float(drawn.mean()), values)


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: Shaped[np.ndarray, "sample *_"],
    num_resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of any statistic, over samples drawn with replacement.

    Args:
        statistic: function of the arrays, such as a correlation of predictions and labels.
        arrays: arrays with one entry for each sample; the same samples are drawn from all.
        num_resamples: number of times that samples are drawn.
        seed: seed of the draws.

    Raises:
        ConfigError: if there are no samples.
    """
    count = len(arrays[0])
    if count < 1:
        raise ConfigError("no samples; a statistic of nothing has no interval")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, count, count) for _ in range(num_resamples))
    found: list[Any] = [statistic(*(array[draw] for array in arrays)) for draw in draws]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)
