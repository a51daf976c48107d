"""How ranks become the group that exchanges gradients: by Ray's own functions for torch.

`ray.train.torch.TorchConfig` does the same. But its module imports torch, and Ray's controller,
which computes nothing, loads it before it starts the ranks: seconds of every start.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port, update_env_vars
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

_LOGGER = logging.getLogger(__name__)

#: For a rank that hangs when its group is dissolved; Ray's own value.
_LEAVE_TIMEOUT_S = 30


@dataclass
class RankGroup(BackendConfig):
    """What a group needs to know; goes where Ray expects a `TorchConfig`."""

    backend: Literal["gloo", "nccl"]
    """Of torch.distributed: gloo on CPUs, nccl on GPUs."""
    timeout_s: int
    """How long an exchange waits for a rank."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Ray's name for what acts on a group of workers."""
        return RankGroupBackend

    @property
    def train_func_context(self) -> Any:
        """Chooses a rank's GPU; the driver asks for it, and has torch."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context

    @property
    def framework(self) -> TrainingFramework:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For Ray's record of the run."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """For Ray's record of the run."""
        return {"backend": self.backend, "timeout_s": self.timeout_s}


class RankGroupBackend(Backend):
    """Lives in the controller; the ranks do what needs torch."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: RankGroup) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tell all ranks where the first one is, and have them meet there."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(update_env_vars, {"MASTER_ADDR": address, "MASTER_PORT": port})
        size, timeout_s = len(worker_group), backend_config.timeout_s
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, rank, size, timeout_s
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Have the ranks leave; one that hangs is ended by Ray."""
        try:
            ray.get(worker_group.execute_async(_leave, len(worker_group)), timeout=_LEAVE_TIMEOUT_S)
        except GetTimeoutError:
            _LOGGER.warning("ranks did not leave their group within %d s", _LEAVE_TIMEOUT_S)


def _join(backend: str, rank: int, size: int, timeout_s: int) -> None:
    from ray.train.torch import config

    from pipelines.runtime.devices import require_gpu

    if backend == "nccl":
        require_gpu()
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, "env://", timeout_s)


def _leave(size: int) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=size > 1)
