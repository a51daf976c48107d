"""A training batch as a checkpoint sees it: drawn by a Ray task, so that no rank waits for it.

The plan says which samples a step had, so that nothing has to come from the ranks.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from clippo_core.checkpoints import load_checkpoint
from clippo_core.modeling import PairModel, make_model
from clippo_core.modeling.classifier import Classifier
from pipelines.config.settings import RunConfig
from pipelines.datasets.sources import open_source
from pipelines.figures.sheets import (
    Picture,
    encode_pngs,
    grey_to_rgb,
    label_sheet,
    pair_sheet,
    similarity_matrix,
)
from pipelines.runtime.run_checkpoints import checkpoint_step, fetched, find_checkpoint
from pipelines.runtime.storage import Location
from pipelines.stream.batch import (
    PreparedBatch,
    StreamSpec,
    as_drawn,
    drawing,
    open_renderer,
    open_vocabulary,
    prepare_batch,
)

#: Number of pairs that are shown, few enough to look at each.
SHOWN_PAIRS = 24


def draw_batch(spec: StreamSpec, config: RunConfig, checkpoint: str | None) -> dict[str, bytes]:
    """Draw pairs of the last batch before a checkpoint; without one, of the first batch.

    Returns:
        PNG files by name: `rendered_texts`, `pairs`, `similarity`; of fine-tuning `samples`.
    """
    step = 0 if checkpoint is None else checkpoint_step(Location.of(checkpoint).name) or 0
    drawn = max(step - 1, 0)
    planned = spec.plan.batch(drawn)
    # Spread evenly over the batch, so that every kind of pair is among them.
    shown = np.unique(np.linspace(0, len(planned) - 1, SHOWN_PAIRS).round().astype(int))
    batch = prepare_batch(spec, planned[shown], step=drawn)
    seen = prepare_batch(drawing(spec), planned[shown], step=drawn)
    if batch.targets is not None:
        return encode_pngs({"samples": _labelled_sheet(spec, batch, seen, checkpoint)})
    left_rasters, rasters = as_drawn(seen.left_texts), as_drawn(seen.texts)
    model = _model_at(checkpoint, spec, config)
    lefts = [model.encode_images(batch.images), model.encode_texts(batch.left_texts)]
    similarity = np.concatenate(lefts) @ model.encode_texts(batch.texts).T
    left = np.concatenate([batch.images, grey_to_rgb(left_rasters.to_pixels())])
    texts = rasters.to_pixels()
    heights = [(f"text rows: {count}", None) for count in rasters.occupied_rows]
    return encode_pngs(
        {
            "rendered_texts": label_sheet(grey_to_rgb(texts), heights, columns=6),
            "pairs": pair_sheet(left, texts, batch.keys),
            "similarity": similarity_matrix(left, texts, similarity, title=f"step {step}"),
        }
    )


def _labelled_sheet(
    spec: StreamSpec, batch: PreparedBatch, seen: PreparedBatch, checkpoint: str | None
) -> Picture:
    """Draw samples with their labels and the checkpoint's answers; texts as in `seen`."""
    assert batch.targets is not None
    assert spec.labels is not None
    names = open_source(spec.sources[0].uri).manifest.class_names
    canvases = batch.images if len(batch.images) else grey_to_rgb(as_drawn(seen.texts).to_pixels())
    scores = batch.targets * spec.labels.score_deviation + spec.labels.score_mean
    found = None if checkpoint is None else _outputs(batch, checkpoint)
    labels: list[tuple[str, bool | None]] = []
    for row, target in enumerate(batch.targets):
        is_right = None
        if spec.labels.is_regression:
            words = [f"{scores[row, 0]:.2f}"] + ([] if found is None else [f"{found[row, 0]:.2f}"])
        else:
            words = [names[target.argmax()] if target.any() else "none that it knows"]
            if found is not None:
                guess = found[row].argmax()
                words.append(names[guess])
                is_right = bool(target[guess] > 0)
        labels.append((" > ".join(words), is_right))
    return label_sheet(canvases, labels, columns=6)


def _outputs(batch: PreparedBatch, checkpoint: str) -> Float[np.ndarray, "sample output"]:
    with fetched(find_checkpoint(checkpoint)) as path:
        model = load_checkpoint(path)
    assert isinstance(model, Classifier)
    is_images = len(batch.images) > 0
    return (
        model.outputs_of_images(batch.images) if is_images else model.outputs_of_texts(batch.texts)
    )


def _model_at(checkpoint: str | None, spec: StreamSpec, config: RunConfig) -> PairModel:
    """Return the model of a checkpoint; without one, the model as it was before training."""
    start = checkpoint or config.train.init_from
    if start is not None:
        with fetched(find_checkpoint(start)) as path:
            return load_checkpoint(path, image_size_px=config.model.render.image_size_px)
    font = open_renderer(spec.render, spec.font_uri).font
    vocabulary = None if spec.vocabulary is None else open_vocabulary(spec.vocabulary)
    model = make_model(config.model, seed=config.train.seed, font=font, vocabulary=vocabulary)
    return model.eval()
