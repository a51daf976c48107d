"""The copy of arrays to a device, without the host waiting for it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(
    array: Shaped[np.ndarray, "*shape"], device: torch.device
) -> Shaped[Tensor, "*shape"]:
    """Return a copy of an array on a device; pinned memory lets the host go on with a GPU.

    On the CPU the tensor is a view of the array, which may be read-only; do not write into it.
    """
    with warnings.catch_warnings():
        # Batches are read-only views of Ray's object store; nothing writes into them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
