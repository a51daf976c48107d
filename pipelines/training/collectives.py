"""Everything that ranks exchange; the one module that knows `torch.distributed`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clippo_core.training.step import Shard


class _GatherRows(torch.autograd.Function):
    """All ranks' rows in order; the gradient of a row is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def this_shard(model: nn.Module) -> Shard:
    """The calling rank's part of the global batch; all of it outside a process group.

    Args:
        model: as it is called: where there are ranks, wrapped to average gradients over them.
    """
    if not is_distributed():
        return Shard()
    without_exchange = model.no_sync if isinstance(model, DistributedDataParallel) else nullcontext
    return Shard(dist.get_rank(), dist.get_world_size(), gather_rows, without_exchange)


def gather_rows(rows: Float[Tensor, "row embed"]) -> Float[Tensor, "pair embed"]:
    """Rows of all ranks, in rank order, with gradients; every rank must give as many."""
    gathered: Tensor = _GatherRows.apply(rows)  # pyright: ignore[reportAssignmentType]
    return gathered


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up each number over the ranks."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if is_distributed():
        dist.all_reduce(total)
    return total.tolist()


def gather_numbers(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Every rank's numbers, in rank order; every rank must give as many."""
    own = torch.tensor(values, dtype=torch.float64, device=device)
    if not is_distributed():
        return [own.tolist()]
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered).tolist()


def sum_of_lower_ranks(count: int) -> int:
    """The sum of what the ranks before this one give; each rank must give a number."""
    if not is_distributed():
        return 0
    return sum(collect_objects(count)[: dist.get_rank()])


def collect_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order; small picklable ones only."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
