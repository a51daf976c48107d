"""What the first layer looks for: its filters' principal components, as pictures."""

# NumPy and torch leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from clippo_core.modeling import PairModel


@dataclass(frozen=True, eq=False)
class PatchFilters:
    """The main directions among the filters.

    Attributes:
        pictures: each scaled by its largest weight, so that grey 127 is no weight.
        explained: share of the filters' variance that lies in each.
        colour_share: of each, the share of squared weights that grey pixels do not see: 0 for a
            filter of brightness alone, as text needs.
    """

    pictures: UInt8[np.ndarray, "filter patch_px patch_px 3"]
    explained: Float[np.ndarray, " filter"]
    colour_share: Float[np.ndarray, " filter"]


def patch_filters(model: PairModel, *, num_filters: int = 28) -> PatchFilters:
    """Principal components of the patch embedding's filters.

    Source: ViT (arXiv:2010.11929), figure 7 on the left, which the paper draws for CLIPPO.

    Args:
        model: of any width.
        num_filters: at most; there are no more than its width or than weights in a patch.
    """
    kernel = model.encoder.patch_embedding.kernel.detach().float().cpu().numpy()
    filters = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    centred = filters - filters.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    explained = singular**2 / max((singular**2).sum(), np.finfo(np.float32).tiny)
    shown = components[:num_filters].reshape(-1, *kernel.shape[:3])
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    grey = shown.mean(axis=3)
    return PatchFilters(
        pictures=np.round(shown / largest * 127 + 127).astype(np.uint8),
        explained=explained[: len(shown)],
        # A component has unit length, and its grey part three equal channels.
        colour_share=1 - 3 * (grey**2).sum(axis=(1, 2)),
    )
