"""How far a score may be off by the choice of test samples alone: 95 % intervals."""

# SciPy and NumPy leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from clippo_core.errors import ConfigError

CONFIDENCE = 0.95
Interval = tuple[float, float]


def proportion_interval(proportion: float, count: int) -> Interval:
    """Wilson's interval of a share, such as an accuracy, of `count` independent samples.

    Raises:
        ConfigError: if there are no samples.
    """
    if count < 1:
        raise ConfigError("no samples; a share of nothing has no interval")
    # Takes longer to import than all else that a driver needs of this module.
    from scipy import stats

    test = stats.binomtest(round(proportion * count), count)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: Shaped[np.ndarray, "sample *_"],
    num_resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any statistic, over samples drawn again with replacement.

    Args:
        statistic: of the arrays, such as a correlation of predictions and labels.
        arrays: with one entry for each sample; the same samples are drawn of all.
        num_resamples: how often.
        seed: of the draws.

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
