"""Evaluations of fine-tuned checkpoints: classes of texts, GLUE, answers to questions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from clippo_core.config import FineTuningTask
from clippo_core.encoding import BATCH_SIZE, Canvases, decoded_batches
from clippo_core.errors import CheckpointError, Rejected, SampleError
from clippo_core.evaluation.glue_metrics import GLUE_TASKS, score_texts
from clippo_core.evaluation.scores import mean_interval, proportion_interval
from clippo_core.evaluation.vqa import (
    answer_targets,
    draw_questions,
    exact_matches,
    most_frequent_answers,
    share_cut,
    vqa_accuracies,
)
from clippo_core.evaluation.zero_shot import classify_by_score
from clippo_core.modeling import PairModel
from clippo_core.modeling.classifier import Classifier
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.labels import Labels, glue_task_of, require_task_kind, text_of
from pipelines.datasets.manifest import RawSample, is_prepared
from pipelines.datasets.sources import Source, open_source
from pipelines.evaluation.embedded import (
    IMAGES_IN_PICTURE,
    captions_of,
    full_texts,
    named_pictures,
    require_some,
)
from pipelines.evaluation.results import (
    Floors,
    TaskResult,
    class_names_of,
    classified,
    labels_of,
    scores_of,
)
from pipelines.figures.sheets import label_sheet

#: Name of the training set beside a test set, in which frequent answers are counted.
TRAINED_ON = "train"
#: Least number of people's answers that makes a VQA accuracy; fewer are compared one by one.
_VQA_ANSWERS = 4


def require_classifier(model: PairModel, task: FineTuningTask) -> Classifier:
    """Return the model, if it was fine-tuned for a task.

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
    return classified(
        classify_by_score(outputs, labels),
        source,
        classifier.classifier_config.labels,
        details=full_texts(classifier, texts),
    )


def glue(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Score a task of GLUE by its own metrics.

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
        wanted = scores_of(source, [sample.score for sample in samples])
        predictions = outputs[:, 0].astype(np.float64)
    else:
        predictions, wanted = outputs.argmax(axis=1), known_labels(source, samples, classifier)
    found = score_texts(predictions, wanted, GLUE_TASKS[name])
    what = "one score for all" if config.is_regression else "most frequent class"
    return TaskResult(
        metrics=found.scores,
        num_samples=len(samples),
        floors={metric: {what: floor} for metric, floor in found.floors.items()},
        intervals=found.intervals,
        details={"glue_task": name, **full_texts(classifier, texts)},
    )


def vqa(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Answer questions, each drawn at the top of its picture.

    With `options.blank` all pictures, or all questions, are left out: the score shows how much the
    other side tells alone.

    Raises:
        SampleError: if the data set has no questions, or no picture of it can be decoded.
        CheckpointError: if the checkpoint is not fine-tuned for it.
    """
    require_task_kind(source, "vqa")
    classifier = require_classifier(model, "vqa")
    vocabulary = classifier.classifier_config.labels
    found = _answer(classifier, source, options)
    questions = [sample.question or "" for sample in found.samples]
    answers = captions_of(source, found.samples)
    scores = _scores(found.said, answers)
    floors, also_read = _vqa_floors(source, questions, answers)
    pairs = zip(questions, found.said, scores["accuracy"], found.shown, strict=False)
    labels = [(f"{question} {answer}", bool(is_right)) for question, answer, is_right, _ in pairs]
    answerable = answer_targets(answers, vocabulary).max(axis=1) > 0
    return TaskResult(
        metrics={name: float(values.mean()) for name, values in scores.items()},
        num_samples=len(found.samples),
        num_rejected=found.num_rejected,
        floors=floors,
        intervals={
            name: proportion_interval(float(values.mean()), len(values))
            if name == "accuracy"
            else mean_interval(values)
            for name, values in scores.items()
        },
        details={
            "blank": options.blank,
            "answers": len(vocabulary),
            "share_with_an_answer_in_the_vocabulary": float(answerable.mean()),
            "share_of_questions_cut": share_cut(questions, classifier.renderer),
        },
        pictures={"predictions": label_sheet(found.shown, labels)},
        also_read=also_read,
    )


def known_labels(
    source: Source, samples: Sequence[RawSample], classifier: Classifier
) -> np.ndarray:
    """Return the samples' classes by the numbers of the classifier's outputs.

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


@dataclass
class _Answers:
    """Samples with a picture that was decoded, their answers, and some as the model saw them."""

    samples: list[RawSample] = field(default_factory=list[RawSample])
    said: list[str] = field(default_factory=list[str])
    shown: Canvases = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    num_rejected: int = 0


def _answer(model: Classifier, source: Source, options: EvaluationOptions) -> _Answers:
    found, vocabulary = _Answers(), model.classifier_config.labels
    pictures = named_pictures(enumerate(itertools.islice(source, options.limit)))
    for batch in decoded_batches(model, pictures):
        found.num_rejected += len(batch.rejected)
        if not batch.names:
            continue
        samples = [sample for _, sample in batch.names]
        seen = [None if options.blank == "picture" else canvas for canvas in batch.canvases]
        asked = ["" if options.blank == "question" else s.question or "" for s in samples]
        canvases = draw_questions(seen, asked, model.renderer, model.config.image)
        outputs = model.outputs_of_images(canvases, batch_size=BATCH_SIZE)
        if not found.samples:
            found.shown = canvases[:IMAGES_IN_PICTURE].copy()
        found.samples += samples
        found.said += [vocabulary[number] for number in outputs.argmax(axis=1)]
    require_some(source, found.samples, num_rejected=found.num_rejected)
    return found


def _scores(
    said: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, Float64[np.ndarray, " question"]]:
    """Return the score of each answer by each metric, the one that counts first."""
    exact = exact_matches(said, answers).astype(np.float64)
    if min(map(len, answers)) < _VQA_ANSWERS:
        return {"accuracy": exact}
    return {"vqa_accuracy": vqa_accuracies(said, answers), "accuracy": exact}


def _vqa_floors(
    source: Source, questions: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[Floors, dict[str, str]]:
    """Return the scores of always giving a frequent answer, and the digest of what else was read.

    Answers are counted in the set `train` beside the source; where there is none, in the source
    itself, and the most frequent answer to each question is not known.
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
