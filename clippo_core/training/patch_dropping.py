"""The choice of the patches of a photograph that a training step encodes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from clippo_core.hashing import hash_values, mix

#: Part of the key that sets these draws apart from others of the same seed.
_PURPOSE = 0x70617463


def draw_kept_patches(
    drop: float, *, seed: int, step: int, first_image: int, num_images: int, num_patches: int
) -> Int64[np.ndarray, "image kept"]:
    """Return the patches that each image keeps, drawn without replacement, in canvas order.

    The result is a pure function of the arguments: the same on any number of ranks, and after a
    restart.

    Args:
        drop: share of the patches that is dropped; at least one is kept.
        seed: seed of the run.
        step: updates made so far.
        first_image: number of the first image in the global batch.
        num_images: number of images from there on.
        num_patches: number of patches of a canvas.

    Source: FLIP, "Scaling Language-Image Pre-training via Masking" (arXiv:2212.00794).
    """
    num_kept = max(round((1 - drop) * num_patches), 1)
    start, end = first_image * num_patches, (first_image + num_images) * num_patches
    values = np.arange(start, end, dtype=np.uint64).reshape(num_images, num_patches)
    scores = hash_values(values, key=mix(seed, step, _PURPOSE))
    kept = np.argpartition(scores, num_kept - 1, axis=1)[:, :num_kept]
    return np.sort(kept, axis=1)
