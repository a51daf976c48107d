"""Metrics of labelled or scored texts: GLUE's, task by task, and the average over its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from clippo_core.errors import ConfigError
from clippo_core.evaluation.scores import Interval, bootstrap_interval, require_finite

Labels = Int[np.ndarray, " sample"]
Scores = Float[np.ndarray, " sample"]
Metric = Callable[[Shaped[np.ndarray, " sample"], Shaped[np.ndarray, " sample"]], float]


def accuracy(predictions: Labels, labels: Labels) -> float:
    """Return the share of predictions that are right."""
    return float((predictions == labels).mean())


def f1(predictions: Labels, labels: Labels) -> float:
    """Return the harmonic mean of precision and recall of class 1; 0 if it is never predicted."""
    # Imported here: it takes half a second, which callers that only name the metrics save.
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))  # pyright: ignore[reportArgumentType] - it is annotated as str


def matthews(predictions: Labels, labels: Labels) -> float:
    """Return Matthews' correlation, from -1 to 1; 0 where all predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Scores, scores: Scores) -> float:
    """Return the linear correlation; 0 where all predictions, or all scores, are the same."""
    return _correlation("pearsonr", predictions, scores)


def spearman(predictions: Scores, scores: Scores) -> float:
    """Return the correlation of ranks; 0 where all predictions, or all scores, are the same."""
    return _correlation("spearmanr", predictions, scores)


def _correlation(name: str, one: Scores, other: Scores) -> float:
    from scipy import stats

    # SciPy warns and gives NaN for what cannot be told: a constant goes with nothing.
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(getattr(stats, name)(one, other)[0])


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """The metrics and evaluation sets of a GLUE task.

    Attributes:
        metrics: metric functions by name; the first is the task's score in the average.
        sets: names that `prepare glue` gives to the sets for evaluation; each is a column of the
            table.
        is_regression: True where labels are scores instead of classes.
    """

    metrics: Mapping[str, Metric]
    sets: tuple[str, ...] = ("dev",)
    is_regression: bool = False


_ACCURACY: Mapping[str, Metric] = {"accuracy": accuracy}
_F1: Mapping[str, Metric] = {"f1": f1, "accuracy": accuracy}

#: Tasks by the names that `prepare glue` gives them. BERT (arXiv:1810.04805, table 1) and PIXEL
#: (arXiv:2207.06991, table 2), whom the paper compares itself with, say which metric counts.
GLUE_TASKS: dict[str, GlueTask] = {
    "mnli": GlueTask(metrics=_ACCURACY, sets=("dev_matched", "dev_mismatched")),
    "qqp": GlueTask(metrics=_F1),
    "qnli": GlueTask(metrics=_ACCURACY),
    "sst-2": GlueTask(metrics=_ACCURACY),
    "cola": GlueTask(metrics={"matthews": matthews, "accuracy": accuracy}),
    "sts-b": GlueTask(metrics={"spearman": spearman, "pearson": pearson}, is_regression=True),
    "mrpc": GlueTask(metrics=_F1),
    "rte": GlueTask(metrics=_ACCURACY),
}


@dataclass(frozen=True, eq=False)
class TextScores:
    """Scores of one evaluation set.

    Attributes:
        scores: the value of each metric.
        intervals: the 95 % interval of each metric.
        floors: value of each metric if every prediction is the most frequent class, or the mean
            score.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    floors: dict[str, float]


def score_texts(
    predictions: Shaped[np.ndarray, " sample"],
    labels: Shaped[np.ndarray, " _"],
    task: GlueTask,
    *,
    seed: int = 0,
) -> TextScores:
    """Compute all metrics of a task, with intervals and floors.

    Args:
        predictions: class numbers, or scores where the task is a regression.
        labels: right class numbers, or people's scores.
        task: one of `GLUE_TASKS`, or another one.
        seed: decides which samples the intervals are drawn from.

    Raises:
        ConfigError: if there are not as many predictions as labels, or none.
        SampleError: if predicted scores are no finite numbers.
    """
    if len(predictions) != len(labels) or not len(labels):
        raise ConfigError(f"{len(predictions)} predictions for {len(labels)} labels")
    require_finite(predictions, what="predictions")
    constant = labels.mean() if task.is_regression else np.bincount(labels).argmax()
    always = np.full(len(labels), constant)
    found = task.metrics.items()
    return TextScores(
        scores={name: metric(predictions, labels) for name, metric in found},
        intervals={
            name: bootstrap_interval(metric, predictions, labels, seed=seed)
            for name, metric in found
        },
        floors={name: metric(always, labels) for name, metric in found},
    )


def glue_average(scores: Mapping[tuple[str, str], float]) -> float:
    """Return the mean over the table's nine columns, both sets of MNLI counted.

    PIXEL's published average (arXiv:2207.06991, table 2) is such a mean of columns. WNLI, on which
    nobody beats the majority, is left out as in the paper.

    Args:
        scores: first metric of each (task, set).

    Raises:
        ConfigError: if a column is missing: an average of other columns compares with nothing.
    """
    columns = [(name, split) for name, task in GLUE_TASKS.items() for split in task.sets]
    missing = [f"{name}/{split}" for name, split in columns if (name, split) not in scores]
    if missing:
        raise ConfigError(f"the GLUE average needs all tasks; missing are {missing}")
    return float(np.mean([scores[column] for column in columns]))
