"""What every classification by class names tells, of pictures or of texts."""

from __future__ import annotations

from collections.abc import Sequence

from clippo_core.evaluation.zero_shot import ZeroShotResult
from pipelines.evaluation.results import Pictures, TaskResult
from pipelines.figures.sheets import confusion_matrix


def class_floors(result: ZeroShotResult) -> dict[str, float]:
    """What guessing, and always naming the most frequent class, gets."""
    return {"chance": 1 / result.num_classes, "most frequent class": result.majority_floor}


def classified(
    result: ZeroShotResult,
    names: Sequence[str],
    *,
    data_set: str,
    templates: Sequence[str],
    num_rejected: int = 0,
    pictures: Pictures,
) -> TaskResult:
    """Accuracy with its floors and interval, per class, and the confusion matrix."""
    confusion = result.confusion
    right = confusion.diagonal() / confusion.sum(axis=1).clip(min=1)
    return TaskResult(
        metrics={"accuracy": result.accuracy, "mean_class_accuracy": result.mean_class_accuracy},
        num_samples=len(result.labels),
        num_rejected=num_rejected,
        floors={
            "accuracy": class_floors(result),
            "mean_class_accuracy": {"chance": 1 / result.num_classes},
        },
        intervals={"accuracy": result.interval},
        details={
            "templates": list(templates),
            "accuracy_per_class": dict(zip(names, right.tolist(), strict=True)),
            "confusion": confusion.tolist(),
        },
        pictures={
            **pictures,
            "confusion": confusion_matrix(
                confusion, names, title=f"{data_set}: class (row) taken for (column)"
            ),
        },
    )
