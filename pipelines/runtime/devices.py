"""The device and the priority with which a Ray task computes."""

from __future__ import annotations

import ray
import torch

from clippo_core.errors import ConfigError

#: Increase of niceness for work that shares a machine with ranks. The ranks' threads wait for each
#: other at every product, so that taking a core from one holds up all of them.
NICE_BESIDE_RANKS = 10


def task_device() -> torch.device:
    """Return the GPU that Ray has set aside for this task or actor, else the CPU.

    Raises:
        ConfigError: if torch cannot use that GPU.
    """
    if not ray.is_initialized() or not ray.get_gpu_ids():
        return torch.device("cpu")
    require_gpu()
    return torch.device("cuda")


def require_gpu() -> None:
    """Make sure that torch can use the GPU that Ray has set aside.

    Raises:
        ConfigError: if torch cannot use it.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Ray has set a GPU aside, but torch {torch.__version__} (CUDA {torch.version.cuda}) "
            "cannot use it; look with python -m cluster.doctor, or do without: leave out --gpus, "
            "--evaluation.gpus or --scaling.use-gpu"
        )


def gpu_memory_bytes() -> int:
    """Return the memory of the GPU that Ray has set aside for the calling task.

    Raises:
        ConfigError: if torch cannot use it.
    """
    require_gpu()
    return torch.cuda.get_device_properties(0).total_memory
