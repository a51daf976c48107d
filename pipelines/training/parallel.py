"""Exchange of tensors between ranks; the one module that knows `torch.distributed`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from clippo_core.modeling import PairModel
from clippo_core.training.step import Shard


class _GatherRows(torch.autograd.Function):
    """Gathers all ranks' rows in order; a row's gradient is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather(list(gathered.split(len(rows))), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def divide_weights(model: PairModel) -> None:
    """Divide weights, and with them gradients and moments, over the ranks (FSDP2), in place.

    A block's weights come together while it works. Without other ranks nothing is divided.
    """
    if is_distributed():
        for tower in model.towers:
            for block in tower.blocks:
                fully_shard(block)
        fully_shard(model)


def divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """Divide a whole tensor over the ranks as `like` is; every rank must hold it."""
    if not _is_divided(like):
        return whole
    is_alike = whole.shape == like.shape
    placements = like.placements if is_alike else [Replicate()] * like.device_mesh.ndim
    return distribute_tensor(whole, like.device_mesh, placements)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be divided over the ranks; every rank must ask for it."""
    return tensor.full_tensor() if _is_divided(tensor) else tensor


def _is_divided(tensor: Any) -> TypeGuard[Any]:
    """Tell whether a tensor is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


def this_shard(model: nn.Module) -> Shard:
    """Return the calling rank's part of the global batch; all of it outside a process group.

    Args:
        model: the model as a step calls it: with several ranks one that averages gradients.
    """
    if not is_distributed():
        return Shard()
    without_exchange = functools.partial(_without_exchange, model)
    return Shard(dist.get_rank(), dist.get_world_size(), gather_rows, without_exchange)


@contextmanager
def _without_exchange(model: nn.Module) -> Iterator[None]:
    """Let gradients add up here, for the backward pass after it to exchange."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    divided: Any = model  # an FSDPModule
    divided.set_requires_gradient_sync(False)
    yield
    divided.set_requires_gradient_sync(True)


def gather_rows(rows: Float[Tensor, "row embed"]) -> Float[Tensor, "pair embed"]:
    """Return the rows of all ranks, in rank order, with gradients; each rank gives as many."""
    gathered: Tensor = _GatherRows.apply(rows)  # pyright: ignore[reportAssignmentType]
    return gathered


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up each number over the ranks."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if is_distributed():
        dist.all_reduce(total)
    return total.tolist()


def gather_numbers(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Return every rank's numbers, in rank order; each rank gives as many."""
    own = torch.tensor(values, dtype=torch.float64, device=device)
    if not is_distributed():
        return [own.tolist()]
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered).tolist()


def collect_objects(value: Any) -> list[Any]:
    """Return every rank's value, in rank order; small picklable ones only."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_distributed() -> bool:
    """Tell whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
