"""What a fine-tuning run learns to say: names of classes or answers, or scores."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from clippo_core.config import ClassifierConfig, FineTuningTask
from clippo_core.errors import SampleError
from clippo_core.evaluation.glue import GLUE_TASKS
from pipelines.ingest.labels import LabelSpec, digest_of_labels, require_task_kind
from pipelines.ingest.sources import Source

#: What `prepare glue` calls a set: glue_sst-2-train.
_GLUE_SET = re.compile(r"glue_(.+?)-(?:train|test|dev|dev_matched|dev_mismatched)")


def find_labels(
    task: FineTuningTask, sources: Sequence[Source], hidden_dim: int | None = None
) -> ClassifierConfig:
    """The head that training sets ask for: an output for each of their classes, or a score.

    Of questions the classes are the frequent answers of the training set, as `prepare` counted
    them.

    Args:
        task: what is learned.
        sources: training sets, all with the same classes; the first one's order counts.
        hidden_dim: of the head.

    Raises:
        SampleError: if a set is of another kind, has no labels, or others than the first.
    """
    first = sources[0]
    for source in sources:
        require_task_kind(source, task)
    names = first.manifest.class_names
    for source in sources[1:]:
        if set(source.manifest.class_names) != set(names):
            other = sorted(set(source.manifest.class_names) ^ set(names))
            raise SampleError(
                f"{source.name} and {first.name} have different labels, e.g. {other[:5]}; train on "
                "sets with the same ones"
            )
    glue_task = glue_task_of(first) if task == "glue" else ""
    if names:
        if glue_task and GLUE_TASKS[glue_task].is_regression:
            raise SampleError(f"{first.name} has classes; {glue_task} has scores")
        if len(names) < 2:
            raise SampleError(
                f"{first.name} has the one label {', '.join(names)}; expected two or more"
            )
        return ClassifierConfig(task=task, labels=names, hidden_dim=hidden_dim, glue_task=glue_task)
    if not glue_task or not GLUE_TASKS[glue_task].is_regression:
        raise SampleError(f"{first.name} has no class names; {task} needs a set with labels")
    scores = [s.score for source in sources for s in source.rows() if s.score is not None]
    if not scores or np.ptp(scores) == 0:
        raise SampleError(f"{first.name} has no scores that differ; {task} needs such labels")
    return ClassifierConfig(
        task=task,
        hidden_dim=hidden_dim,
        glue_task=glue_task,
        score_mean=round(float(np.mean(scores)), 6),
        score_deviation=round(float(np.std(scores)), 6),
    )


def glue_task_of(source: Source) -> str:
    """Which task of GLUE a data set is of.

    Raises:
        SampleError: if it is of none.
    """
    match = _GLUE_SET.fullmatch(source.name)
    if match is None or match[1] not in GLUE_TASKS:
        raise SampleError(
            f"{source.name} is no set of GLUE, but one that `prepare glue` made was expected, of "
            f"{', '.join(GLUE_TASKS)}; for other texts with classes use text_classification"
        )
    return match[1]


def label_spec(classifier: ClassifierConfig) -> LabelSpec:
    """What render workers are told of the labels."""
    return LabelSpec(
        task=classifier.task,
        num_outputs=classifier.num_outputs,
        digest=digest_of_labels(classifier.labels),
        score_mean=classifier.score_mean,
        score_deviation=classifier.score_deviation,
    )
