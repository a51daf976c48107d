"""What fine-tuned checkpoints were trained for: classes of texts, GLUE, answers to questions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, UInt8

from clippo_core.config import FineTuningTask
from clippo_core.errors import CheckpointError, Rejected, SampleError
from clippo_core.evaluation.glue_metrics import GLUE_TASKS, score_texts
from clippo_core.evaluation.uncertainty import Interval, bootstrap_interval, proportion_interval
from clippo_core.evaluation.vqa import (
    answer_targets,
    class_answers,
    draw_questions,
    exact_matches,
    most_frequent_answers,
    share_cut,
    vqa_accuracies,
)
from clippo_core.evaluation.zero_shot import ZeroShotResult
from clippo_core.modeling import PairModel
from clippo_core.modeling.classifier import Classifier
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.labels import Labels, glue_task_of, require_task_kind, text_of
from pipelines.datasets.manifest import RawSample, is_prepared
from pipelines.datasets.sources import Source, open_source
from pipelines.evaluation.classification import classified
from pipelines.evaluation.embedded import (
    BATCH_SIZE,
    IMAGES_IN_PICTURE,
    captions_of,
    decoded_batches,
    full_texts,
)
from pipelines.evaluation.results import Floors, TaskResult, class_names_of, labels_of
from pipelines.figures.sheets import label_sheet

#: The set beside a test set that a checkpoint was fine-tuned on, for what is frequent there.
TRAINED_ON = "train"
#: So many answers of people make a VQA accuracy; fewer are compared one by one.
_VQA_ANSWERS = 4


def require_classifier(model: PairModel, task: FineTuningTask) -> Classifier:
    """The model, if it was fine-tuned for a task.

    Raises:
        CheckpointError: if it has no classifier, or one for another task.
    """
    if isinstance(model, Classifier) and model.classifier_config.task == task:
        return model
    found = (
        f"is fine-tuned for {model.classifier_config.task}"
        if isinstance(model, Classifier)
        else "has no classifier"
    )
    raise CheckpointError(
        f"the checkpoint {found}, and {task} needs one that is fine-tuned for it; make one with\n"
        f"  python -m pipelines finetune {task} --checkpoint CHECKPOINT --data.sources DATA_SET"
    )


def text_classification(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify texts by the fine-tuned head.

    Raises:
        SampleError: if the data set has no classes, or some that the checkpoint does not know.
        CheckpointError: if the checkpoint is not fine-tuned for it.
    """
    require_task_kind(source, "text_classification")
    class_names_of(source, "text_classification")
    classifier = require_classifier(model, "text_classification")
    samples = list(itertools.islice(source, options.limit))
    labels = known_labels(source, samples, classifier)
    texts = _texts(source, samples)
    outputs = classifier.outputs_of_texts(texts, batch_size=BATCH_SIZE)
    names = classifier.classifier_config.labels
    right = np.take_along_axis(outputs, labels[:, None], axis=1)
    ranks = (outputs > right).sum(axis=1)
    found = classified(
        ZeroShotResult(outputs.argmax(axis=1), labels, len(names), ranks),
        names,
        data_set=source.name,
        templates=(),
        pictures={},
    )
    del found.details["templates"]
    found.details.update(full_texts(classifier, texts))
    return found


def glue(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """A task of GLUE by its own metrics.

    Raises:
        SampleError: if the data set is not of the task that the checkpoint is fine-tuned for.
        CheckpointError: if the checkpoint is not fine-tuned for GLUE.
    """
    require_task_kind(source, "glue")
    name = glue_task_of(source)
    classifier = require_classifier(model, "glue")
    config = classifier.classifier_config
    if config.glue_task != name:
        raise SampleError(
            f"{source.name} is of {name}, but the checkpoint is fine-tuned for {config.glue_task}"
        )
    samples = list(itertools.islice(source, options.limit))
    texts = _texts(source, samples)
    outputs = classifier.outputs_of_texts(texts, batch_size=BATCH_SIZE)
    if config.is_regression:
        scores = [sample.score for sample in samples if sample.score is not None]
        if len(scores) < len(samples):
            raise SampleError(f"{source.name} has samples without a score")
        predictions, wanted = outputs[:, 0].astype(np.float64), np.array(scores, np.float64)
    else:
        predictions, wanted = outputs.argmax(axis=1), known_labels(source, samples, classifier)
    found = score_texts(predictions, wanted, GLUE_TASKS[name])
    what = "one score for all" if config.is_regression else "most frequent class"
    result = TaskResult(
        metrics=found.scores,
        num_samples=len(samples),
        floors={metric: {what: floor} for metric, floor in found.floors.items()},
        intervals=found.intervals,
        details={"glue_task": name},
    )
    result.details.update(full_texts(classifier, texts))
    return result


def vqa(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Answer questions, each drawn at the top of its picture.

    `options.blank` leaves all pictures or all questions out: what the other side alone tells.

    Raises:
        SampleError: if the data set has no questions, or no picture of it can be decoded.
        CheckpointError: if the checkpoint is not fine-tuned for it.
    """
    require_task_kind(source, "vqa")
    classifier = require_classifier(model, "vqa")
    vocabulary = classifier.classifier_config.labels
    samples, predictions, shown, num_rejected = _answered(
        classifier, itertools.islice(source, options.limit), options
    )
    if not samples:
        raise SampleError(f"{source.name}: not one of {num_rejected} pictures can be decoded")
    questions = [sample.question or "" for sample in samples]
    answers = captions_of(source, samples)
    said = class_answers(predictions, vocabulary)
    scores = _scores(said, answers)
    floors, also_read = _vqa_floors(source, questions, answers)
    labels = [
        (f"{question} {answer}", bool(is_right))
        for question, answer, is_right in zip(questions, said, scores["accuracy"], strict=False)
    ]
    answerable = answer_targets(answers, vocabulary).max(axis=1) > 0
    return TaskResult(
        metrics={name: float(values.mean()) for name, values in scores.items()},
        num_samples=len(samples),
        num_rejected=num_rejected,
        floors=floors,
        intervals={name: _interval(name, values) for name, values in scores.items()},
        details={
            "blank": options.blank,
            "answers": len(vocabulary),
            "share_with_an_answer_in_the_vocabulary": float(answerable.mean()),
            "share_of_questions_cut": share_cut(questions, classifier.renderer),
        },
        pictures={"predictions": label_sheet(shown, labels[: len(shown)])},
        also_read=also_read,
    )


def known_labels(
    source: Source, samples: Sequence[RawSample], classifier: Classifier
) -> np.ndarray:
    """The samples' classes by the numbers of the classifier's outputs.

    Raises:
        SampleError: if a sample has no class, or one that the classifier does not know.
    """
    names = source.manifest.class_names
    labels = Labels(classifier.classifier_config.labels, names)
    class_ids = labels_of(source, [sample.class_id for sample in samples])
    numbers = [labels.number_of(int(class_id)) for class_id in class_ids]
    unknown = {
        names[c] if 0 <= c < len(names) else f"class {c}"
        for c, number in zip(class_ids.tolist(), numbers, strict=True)
        if number is None
    }
    if unknown:
        raise SampleError(
            f"{source.name} has labels that the checkpoint was not trained on: "
            f"{sorted(unknown)[:5]}; it knows {list(labels.names)[:20]}. Evaluate on a set with "
            "these, or fine-tune on one that has all of them"
        )
    return np.array(numbers, np.int64)


def _texts(source: Source, samples: Sequence[RawSample]) -> list[str]:
    texts = [text_of(sample) for sample in samples]
    bad = [s.key for s, text in zip(samples, texts, strict=True) if isinstance(text, Rejected)]
    if bad:
        raise SampleError(f"{source.name}: {len(bad)} samples are not 1 or 2 texts, e.g. {bad[0]}")
    return [text for text in texts if not isinstance(text, Rejected)]


def _answered(
    model: Classifier, samples: itertools.islice[RawSample], options: EvaluationOptions
) -> tuple[list[RawSample], np.ndarray, UInt8[np.ndarray, "image height_px width_px 3"], int]:
    """The samples whose picture can be decoded, the answer to each, and some as they were seen."""
    usable: list[RawSample] = []
    predictions, shown, num_rejected = [np.empty(0, np.int64)], None, 0
    for batch, pixels, rejected in decoded_batches(model, samples):
        num_rejected += rejected
        if not batch:
            continue
        usable += batch
        is_blank = {side: options.blank == side for side in ("picture", "question")}
        pictures = [None if is_blank["picture"] else picture for picture in pixels]
        questions = ["" if is_blank["question"] else sample.question or "" for sample in batch]
        canvases = draw_questions(pictures, questions, model.renderer, model.config.image)
        predictions.append(model.outputs_of_images(canvases, batch_size=BATCH_SIZE).argmax(axis=1))
        shown = canvases[:IMAGES_IN_PICTURE] if shown is None else shown
    size = model.config.render.image_size_px
    nothing = np.empty((0, size, size, 3), np.uint8)
    seen = nothing if shown is None else shown
    return usable, np.concatenate(predictions), seen, num_rejected


def _scores(
    said: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, Float64[np.ndarray, " question"]]:
    """Of each answer, the metric that counts first."""
    exact = exact_matches(said, answers).astype(np.float64)
    if min(map(len, answers)) < _VQA_ANSWERS:
        return {"accuracy": exact}
    return {"vqa_accuracy": vqa_accuracies(said, answers), "accuracy": exact}


def _interval(name: str, values: Float[np.ndarray, " question"]) -> Interval:
    if name == "accuracy":
        return proportion_interval(float(values.mean()), len(values))
    return bootstrap_interval(lambda drawn: float(drawn.mean()), values)


def _vqa_floors(
    source: Source, questions: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[Floors, dict[str, str]]:
    """What always giving a frequent answer gets, and what was read to know which are frequent.

    Frequent in the set `train` beside the source; where there is none, in the source itself, and
    the most frequent answer to each question is not known.
    """
    place = source.folder.parent / TRAINED_ON
    is_there = is_prepared(place)
    training = open_source(place.uri) if is_there else source
    asked, given = [], []
    for sample in training.rows():
        found = [answer for answer in sample.captions or () if answer]
        if found:
            asked.append(sample.question or "")
            given.append(Counter(found).most_common(1)[0][0])
    guesses = {"most frequent answer": [Counter(given).most_common(1)[0][0]] * len(questions)}
    if is_there:
        guesses["most frequent answer to the question"] = most_frequent_answers(
            asked, given, questions
        )
    floors: Floors = {}
    for what, guessed in guesses.items():
        for metric, values in _scores(guessed, answers).items():
            floors.setdefault(metric, {})[what] = float(values.mean())
    return floors, {training.folder.uri: training.manifest.digest} if is_there else {}
