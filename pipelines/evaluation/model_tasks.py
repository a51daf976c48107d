"""Evaluations of a model from inside: its first layer, and where it puts pictures and texts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from clippo_core.encoding import BATCH_SIZE
from clippo_core.evaluation.representation import modality_gap, patch_filters
from clippo_core.evaluation.scores import mean_interval
from clippo_core.modeling import PairModel
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.sources import Source
from pipelines.evaluation.embedded import captions_of, embed_source
from pipelines.evaluation.results import TaskResult
from pipelines.figures.charts import scatter
from pipelines.figures.sheets import label_sheet

_POINTS_IN_PICTURE = 1000
_FILTERS_EXPLAINED = 10


def modality_gap_of_pairs(
    model: PairModel, source: Source, options: EvaluationOptions
) -> TaskResult:
    """Measure how far apart pictures and their captions lie as a whole; 0 would be no gap.

    One caption of each picture is taken, where there are several in turn the first, second, ….

    Raises:
        SampleError: if a picture has no caption, or there is only one picture.
    """
    embedded = embed_source(model, source, limit=options.limit)
    captions = captions_of(source, embedded.samples)
    texts = model.encode_texts(
        [found[number % len(found)] for number, found in enumerate(captions)], batch_size=BATCH_SIZE
    )
    found = modality_gap(embedded.images, texts)
    others = (embedded.images * np.roll(texts, 1, axis=0)).sum(axis=1)
    similarity = (embedded.images * texts).sum(axis=1)
    shown = slice(_POINTS_IN_PICTURE)
    return TaskResult(
        metrics={"gap": found.gap, "pair_similarity": found.pair_similarity},
        less_is_better=("gap",),
        num_samples=len(captions),
        num_rejected=embedded.num_rejected,
        floors={
            "gap": {"two halves of the pictures": found.floor},
            "pair_similarity": {"a picture and another's caption": float(others.mean())},
        },
        intervals={
            "gap": mean_interval(_along_gap(embedded.images, texts)),
            "pair_similarity": mean_interval(similarity),
        },
        pictures={
            "embeddings": scatter(
                {"pictures": found.images_2d[shown], "captions": found.texts_2d[shown]},
                title=f"{source.name}: two main axes of the embeddings; gap {found.gap:.3f}",
            )
        },
    )


def _along_gap(
    images: Float32[np.ndarray, "pair embed"], texts: Float32[np.ndarray, "pair embed"]
) -> Float32[np.ndarray, " pair"]:
    """Return how far apart each pair is in the direction of the gap; the mean is the gap."""
    differences = images - texts
    mean = differences.mean(axis=0)
    return differences @ (mean / max(float(np.linalg.norm(mean)), 1e-9))


def patch_filters_of(model: PairModel) -> TaskResult:
    """Show the principal components of the first layer's filters; needs no data."""
    found = patch_filters(model)
    kernel = model.encoder.patch_embedding.kernel
    num_components = min(kernel.shape[-1], kernel[..., 0].numel())
    explained = f"explained_by_{_FILTERS_EXPLAINED}"
    labels = [
        (f"{100 * share:.1f} % colour {100 * colour:.0f} %", None)
        for share, colour in zip(found.explained, found.colour_share, strict=True)
    ]
    return TaskResult(
        metrics={
            explained: float(found.explained[:_FILTERS_EXPLAINED].sum()),
            "mean_colour_share": float(np.average(found.colour_share, weights=found.explained)),
        },
        num_samples=int(kernel.shape[-1]),
        floors={
            explained: {"all components alike": min(_FILTERS_EXPLAINED / num_components, 1.0)},
            # Two of a pixel's three directions are colour.
            "mean_colour_share": {"random filters": 2 / 3},
        },
        pictures={"filters": label_sheet(found.pictures, labels, columns=7)},
    )
