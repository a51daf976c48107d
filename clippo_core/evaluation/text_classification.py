"""Zero-shot classification of texts: the nearest of the texts that describe the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from clippo_core.evaluation.prompts import fill
from clippo_core.evaluation.zero_shot import ZeroShotResult, class_embeddings, classify
from clippo_core.modeling import PairModel


def classify_texts(
    model: PairModel,
    texts: Sequence[str],
    labels: Int[np.ndarray, " text"],
    *,
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
) -> ZeroShotResult:
    """Give every text the class whose prompts, averaged, are nearest to it.

    As with pictures, so with texts: the paper classifies SST-2 by five prompts for each sentiment.
    It does not print them; `prompts.TEMPLATES["sentiment5"]` are ours.

    Args:
        model: encodes texts and prompts alike.
        texts: to classify.
        labels: their classes.
        class_names: words that go into the templates.
        templates: with `{}` for the class name.
        batch_size: texts encoded at a time.

    Raises:
        ConfigError: if a template has no `{}`, or a label is not the number of a class.
    """
    prompts = model.encode_texts(fill(templates, class_names), batch_size=batch_size)
    classes = class_embeddings(prompts, num_classes=len(class_names))
    return classify(model.encode_texts(texts, batch_size=batch_size), classes, labels)
