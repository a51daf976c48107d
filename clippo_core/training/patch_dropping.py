"""Which patches of a photograph a training step encodes, when some are dropped."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from clippo_core.hashing import hash_values, mix

#: Sets these draws apart from others of the same seed.
_PURPOSE = 0x70617463


def draw_kept_patches(
    drop: float, *, seed: int, step: int, first_image: int, num_images: int, num_patches: int
) -> Int64[np.ndarray, "image kept"]:
    """The patches that each image keeps, uniformly drawn without replacement, in canvas order.

    A pure function of its arguments: the same on any number of ranks, and after a restart.

    Args:
        drop: share of the patches that is dropped; at least one is kept.
        seed: of the run.
        step: updates made so far.
        first_image: place of the first image among the images of the global batch.
        num_images: how many images there are from there on.
        num_patches: of a canvas.

    Source: FLIP, "Scaling Language-Image Pre-training via Masking" (arXiv:2212.00794).
    """
    num_kept = max(round((1 - drop) * num_patches), 1)
    start, end = first_image * num_patches, (first_image + num_images) * num_patches
    values = np.arange(start, end, dtype=np.uint64).reshape(num_images, num_patches)
    scores = hash_values(values, key=mix(seed, step, _PURPOSE))
    kept = np.argpartition(scores, num_kept - 1, axis=1)[:, :num_kept]
    return np.sort(kept, axis=1)
