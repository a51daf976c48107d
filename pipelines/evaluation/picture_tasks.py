"""Classification of pictures: by class names, by a few examples, and with words written on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clippo_core.encoding import BATCH_SIZE, decoded_batches
from clippo_core.evaluation.few_shot import FewShotResult, choose_shots, few_shot, pooled_features
from clippo_core.evaluation.scores import class_floors, proportion_interval
from clippo_core.evaluation.typographic import AttackResult, typographic_attack
from clippo_core.evaluation.zero_shot import classify, embed_classes
from clippo_core.modeling import PairModel
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import Source
from pipelines.evaluation.embedded import (
    IMAGES_IN_PICTURE,
    embed_source,
    named_pictures,
    require_some,
)
from pipelines.evaluation.results import (
    WITH_PICTURES,
    TaskResult,
    class_names_of,
    classified,
    labels_of,
    require_kind,
    training_set_beside,
)
from pipelines.figures.sheets import label_sheet

#: Examples of each class, as in the paper; drawn several times, since the score depends on them.
SHOTS, NUM_DRAWS = 10, 3
#: Photos that an attack holds in memory at a time, each in three versions.
_ATTACKED_AT_A_TIME = 512


def zero_shot(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify pictures by the nearest class name.

    Raises:
        SampleError: if the data set has no classes.
    """
    names = class_names_of(source, "zero_shot")
    classes = embed_classes(model, names, options.templates, batch_size=BATCH_SIZE)
    embedded = embed_source(model, source, limit=options.limit)
    labels = labels_of(source, [sample.class_id for sample in embedded.samples])
    result = classify(embedded.images, classes, labels)
    captions = [
        (names[predicted], bool(predicted == label))
        for predicted, label, _ in zip(result.predictions, labels, embedded.shown, strict=False)
    ]
    return classified(
        result,
        source,
        names,
        num_rejected=embedded.num_rejected,
        details={"templates": list(options.templates)},
        pictures={"predictions": label_sheet(embedded.shown, captions)},
    )


def few_shot_linear(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Fit linear classifiers to ten pictures of each class, and classify those of a test set.

    The source is the test set; the examples ("shots") come from the set `train` beside it.
    `options.limit` limits the test pictures.

    Raises:
        SampleError: if there is no such set, it has other classes, or a class has too few pictures.
    """
    names = class_names_of(source, "few_shot")
    training = training_set_beside(source, names, task="few_shot")
    labels = labels_of(training, training.class_ids())
    chosen = [
        choose_shots(labels, shots=SHOTS, num_classes=len(names), seed=seed)
        for seed in range(NUM_DRAWS)
    ]

    def encode(pixels: np.ndarray) -> Float[np.ndarray, "image width"]:
        return pooled_features(model, pixels, batch_size=BATCH_SIZE)

    tested = embed_source(model, source, limit=options.limit, encode=encode)
    test_labels = labels_of(source, [sample.class_id for sample in tested.samples])

    def fit(rows: Int[np.ndarray, " shot"]) -> FewShotResult:
        shots = embed_source(model, training, rows=rows, encode=encode)
        return few_shot(
            shots.images, labels[shots.rows], tested.images, test_labels, num_classes=len(names)
        )

    draws = [fit(rows) for rows in chosen]
    accuracy = float(np.mean([draw.accuracy for draw in draws]))
    floors = class_floors(test_labels, len(names))
    return TaskResult(
        metrics={
            "accuracy": accuracy,
            # The published numbers use the regulariser that is best on the test pictures.
            "best_l2_accuracy": float(np.mean([draw.best_accuracy for draw in draws])),
        },
        num_samples=len(test_labels),
        num_rejected=tested.num_rejected,
        floors={"accuracy": floors, "best_l2_accuracy": floors},
        intervals={"accuracy": proportion_interval(accuracy, len(test_labels))},
        details={
            "shots_per_class": SHOTS,
            "shots_from": training.name,
            "accuracy_per_draw": [draw.accuracy for draw in draws],
            "l2_per_draw": [draw.chosen_l2 for draw in draws],
        },
        also_read={training.folder.uri: training.manifest.digest},
    )


def typographic(model: PairModel, source: Source, options: EvaluationOptions) -> TaskResult:
    """Classify photos with a wrong class name written on them, and without.

    Raises:
        SampleError: if the data set has no classes.
    """
    require_kind(source, "typographic", WITH_PICTURES)
    names = class_names_of(source, "typographic")
    classes = embed_classes(model, names, options.templates, batch_size=BATCH_SIZE)
    attacks: list[AttackResult] = []
    labels: list[np.ndarray] = []
    num_rejected = 0
    pictures = named_pictures(enumerate(itertools.islice(source, options.limit)))
    for batch in decoded_batches(model, pictures, batch_size=_ATTACKED_AT_A_TIME):
        num_rejected += len(batch.rejected)
        if batch.names:
            labels.append(labels_of(source, [sample.class_id for _, sample in batch.names]))
            attacks.append(
                typographic_attack(
                    model, batch.canvases, labels[-1], classes, class_names=names, seed=len(attacks)
                )
            )
    require_some(source, attacks, num_rejected=num_rejected)
    return _attacked(names, attacks, np.concatenate(labels), num_rejected)


def _attacked(
    names: Sequence[str],
    attacks: Sequence[AttackResult],
    labels: Int[np.ndarray, " image"],
    num_rejected: int,
) -> TaskResult:
    """Average the numbers of the attacks; show the first photos with their words."""
    sizes = [len(attack.written) for attack in attacks]

    def mean(name: str) -> float:
        return float(np.average([getattr(attack, name) for attack in attacks], weights=sizes))

    floors = class_floors(labels, len(names))
    shares = {name: mean(name) for name in ("flip_rate", "attacked_accuracy", "accuracy")}
    first = attacks[0]
    shown = [
        (f"{names[written]} > {names[predicted]}", bool(predicted == label))
        for written, predicted, label in zip(
            first.written, first.attacked_predictions, labels[: sizes[0]], strict=True
        )
    ][:IMAGES_IN_PICTURE]
    return TaskResult(
        metrics={**shares, "blank_accuracy": mean("blank_accuracy")},
        less_is_better=("flip_rate",),
        num_samples=len(labels),
        num_rejected=num_rejected,
        floors={
            "flip_rate": {"blank label": mean("blank_flip_rate")},
            "attacked_accuracy": floors,
            "accuracy": floors,
        },
        intervals={name: proportion_interval(value, len(labels)) for name, value in shares.items()},
        pictures={"attacked": label_sheet(first.attacked[: len(shown)], shown)},
    )
