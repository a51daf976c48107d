"""A training batch as a checkpoint sees it: drawn by a Ray task, so that no rank waits for it.

The plan says which samples a step had, so that nothing has to come from the ranks.
"""

from __future__ import annotations

import numpy as np

from clippo_core.checkpoints import load_checkpoint
from pipelines.ingest.stages import StreamSpec, prepare_batch
from pipelines.storage import Location, checkpoint_step, fetched
from pipelines.tracking.figures import (
    encode_pngs,
    grey_to_rgb,
    label_sheet,
    pair_sheet,
    similarity_matrix,
)

#: Pairs that are shown; few enough to look at each.
SHOWN_PAIRS = 24


def draw_batch(spec: StreamSpec, checkpoint: str) -> dict[str, bytes]:
    """Draw pairs of the last batch before a checkpoint.

    Returns:
        PNG files by name: `rendered_texts`, `pairs`, `similarity`.
    """
    place = Location.of(checkpoint)
    step = checkpoint_step(place.name) or 1
    planned = spec.plan.batch(step - 1)
    # Evenly over the batch, so that every kind of pair is among them.
    shown = np.unique(np.linspace(0, len(planned) - 1, SHOWN_PAIRS).round().astype(int))
    batch = prepare_batch(spec, planned.take(shown), step=step - 1)
    with fetched(place) as path:
        model = load_checkpoint(path)
    lefts = [model.encode_images(batch.images), model.encode_texts(batch.left_texts)]
    similarity = np.concatenate(lefts) @ model.encode_texts(batch.texts).T
    left = np.concatenate([batch.images, grey_to_rgb(batch.left_texts.to_pixels())])
    texts = batch.texts.to_pixels()
    heights = [(f"text rows: {count}", None) for count in batch.texts.occupied_rows]
    pictures = {
        "rendered_texts": label_sheet(grey_to_rgb(texts), heights, columns=6),
        "pairs": pair_sheet(left, texts, batch.keys),
        "similarity": similarity_matrix(left, texts, similarity, title=f"step {step}"),
    }
    return encode_pngs(pictures)
