"""The verdict on a claim, from the results of runs that differ in their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from clippo_core.evaluation.scores import CONFIDENCE

#: Of a single run nothing is known of what another seed would give, so that it decides nothing.
Verdict = Literal["shown", "not shown", "contradicted", "one run"]


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval; infinite for one seed."""

    mean: float
    half_width: float

    @property
    def text(self) -> str:
        """Return the mean with its interval, as a table has it."""
        if not np.isfinite(self.half_width):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True)
class Comparison:
    """A metric of which a claim says that it is better in one arm than in another.

    Attributes:
        about: the metric as a person reads it.
        metric: TASK/SOURCE/METRIC.
        ours: the arm that the claim favours.
        theirs: the other arm, or a fixed value that is to be reached.
        margin: how much worse `ours` may be for the claim to hold; 0 asks for better.
        is_less_better: True where lower values are better.
    """

    about: str
    metric: str
    ours: str
    theirs: str | float
    margin: float = 0.0
    is_less_better: bool = False

    def judge(self, ours: Sequence[float], theirs: Sequence[float]) -> tuple[Verdict, Estimate]:
        """Return the verdict, and by how much `ours` is better, from values in the order of seeds.

        It is shown, or contradicted, if the 95 % interval of the difference lies on one side of
        the margin. One run each decides nothing.
        """
        sign = -1 if self.is_less_better else 1
        found = estimate([sign * (a - b) for a, b in zip(ours, theirs, strict=True)])
        if len(ours) == 1:
            return "one run", found
        if found.mean - found.half_width > -self.margin:
            return "shown", found
        if found.mean + found.half_width < -self.margin:
            return "contradicted", found
        return "not shown", found


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds with the interval of Student's t."""
    # Imported here: it takes longer than all else that the list of claims needs.
    from scipy import stats

    if len(values) < 2:
        return Estimate(float(np.mean(values)), float("inf"))
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(float(np.mean(values)), quantile * error)


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a claim: each part that has several runs must be shown."""
    decided = {verdict for verdict in verdicts if verdict != "one run"}
    if "contradicted" in decided:
        return "contradicted"
    if verdicts and not decided:
        return "one run"
    return "shown" if decided == {"shown"} else "not shown"
