"""The evaluations by name: each takes a model and a data set, and returns numbers and pictures."""

from __future__ import annotations

from collections.abc import Callable

from clippo_core.errors import ConfigError
from clippo_core.modeling import PairModel
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import Source
from pipelines.evaluation.fine_tuned_tasks import glue, text_classification, vqa
from pipelines.evaluation.model_tasks import modality_gap_of_pairs, patch_filters_of
from pipelines.evaluation.picture_tasks import few_shot_linear, typographic, zero_shot
from pipelines.evaluation.results import TaskResult
from pipelines.evaluation.retrieval_tasks import (
    behaviour,
    bitext_retrieval,
    multilingual_retrieval,
    retrieval,
)
from pipelines.evaluation.text_tasks import sequence_length, text_similarity, text_zero_shot

Evaluation = Callable[[PairModel, Source, EvaluationOptions], TaskResult]

EVALUATIONS: dict[str, Evaluation] = {
    "zero_shot": zero_shot,
    "few_shot": few_shot_linear,
    "typographic": typographic,
    "retrieval": retrieval,
    "multilingual_retrieval": multilingual_retrieval,
    "behaviour": behaviour,
    "modality_gap": modality_gap_of_pairs,
    "bitext_retrieval": bitext_retrieval,
    "text_zero_shot": text_zero_shot,
    "text_similarity": text_similarity,
    "sequence_length": sequence_length,
    "text_classification": text_classification,
    "glue": glue,
    "vqa": vqa,
}
#: Evaluations of the model alone.
WITHOUT_DATA: dict[str, Callable[[PairModel], TaskResult]] = {"patch_filters": patch_filters_of}


def find_evaluation(name: str) -> Evaluation:
    """The evaluation of that name, of those that read a data set.

    Raises:
        ConfigError: if there is none.
    """
    if name not in EVALUATIONS:
        known = sorted({*EVALUATIONS, *WITHOUT_DATA})
        raise ConfigError(f"no evaluation is called {name!r}; there are {known}")
    return EVALUATIONS[name]
