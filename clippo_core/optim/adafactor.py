"""Adafactor as "Scaling Vision Transformers" uses it (arXiv:2106.04560, section 3.4).

`torch.optim.Adafactor` is another one: no momentum, a step size relative to the parameters,
update clipping, and other rules for what is factored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DIM_FACTORED = 32
DECAY_EXPONENT = 0.8
BETA2_CAP = 0.999
EPSILON = 1e-30
#: A block of so many, with what is computed from it, stays in the cache of a core.
BLOCK_ELEMENTS = 2**18


class Adafactor(torch.optim.Optimizer):
    """Factored second moment, momentum of the update, no relative step size.

    With `b_t = min(0.999, 1 - t^-0.8)` for update `t = 1, 2, ...`, the second moment is
    `v <- b_t v + (1 - b_t) (g^2 + 1e-30)`, kept as its means over the rows and over the columns of
    the two largest dimensions where both are at least 32. The update `u = g / sqrt(v)` is averaged
    into the momentum, `m <- beta1 m + (1 - beta1) u`, and `p <- p - lr m - weight_decay p`.

    Weight decay is not multiplied by the learning rate; the caller multiplies both by the schedule.

    Source: big_vision `optax.scale_by_adafactor` at 0127fb6; equality over twelve steps shown in
    tests/parity/test_adafactor.py.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        momentum_dtype: torch.dtype = torch.bfloat16,
    ):
        """Take the parameters.

        Args:
            params: tensors, or groups as torch's optimizers take them.
            lr: learning rate.
            weight_decay: share of a parameter that each update takes away.
            beta1: decay of the momentum.
            momentum_dtype: how the momentum is stored; it is computed in float32.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta1": beta1})
        self.momentum_dtype = momentum_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Adafactor takes no closure; call backward() before step()")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad.float(), group)

    def _update(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state.update(self._initial_state(param))
        state["step"] += 1
        beta2 = min(BETA2_CAP, 1 - float(state["step"]) ** -DECAY_EXPONENT)
        # The reference keeps beta1 in the momentum's own type (0.9 is 0.8984 in bfloat16).
        beta1_as_stored = float(torch.tensor(group["beta1"], dtype=self.momentum_dtype))
        blocks = _blocks(param)
        factors = _factors(gradient, blocks, state, beta2) if "row_moment" in state else None
        for block in blocks:
            of_block = gradient[block]
            if factors is None:
                squared = of_block.square().add_(EPSILON)
                root = state["second_moment"][block].lerp_(squared, 1 - beta2).rsqrt()
                update = root.mul_(of_block)
            else:
                row, column = (f if f.shape[0] == 1 else f[block] for f in factors)
                update = (of_block * row).mul_(column)
            stored = state["momentum"][block]
            momentum = update.mul_(1 - group["beta1"]).add_(stored.mul_(beta1_as_stored))
            param[block].mul_(1 - group["weight_decay"]).sub_(momentum, alpha=group["lr"])
            stored.copy_(momentum)

    def _initial_state(self, param: Tensor) -> dict[str, Tensor]:
        state = {
            "step": torch.zeros((), dtype=torch.float32),
            "momentum": torch.zeros_like(param, dtype=self.momentum_dtype),
        }
        dims = factored_dims(param.shape)
        if dims is None:
            return state | {"second_moment": torch.zeros_like(param, dtype=torch.float32)}
        smaller, larger = dims
        return state | {
            "row_moment": param.new_zeros(_without(param.shape, larger), dtype=torch.float32),
            "column_moment": param.new_zeros(_without(param.shape, smaller), dtype=torch.float32),
        }


def factored_dims(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The two largest dimensions, the smaller one first; None if one of them is under 32."""
    by_size = sorted(range(len(shape)), key=lambda dim: shape[dim])
    if len(shape) < 2 or shape[by_size[-2]] < MIN_DIM_FACTORED:
        return None
    return by_size[-2], by_size[-1]


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _blocks(param: Tensor) -> list[slice]:
    """Slices of the first dimension; on a CPU so small that what is worked on stays in cache."""
    # A divided parameter is of another type; a slice of it may lie on another rank.
    is_whole = param.device.type != "cpu" or type(param.data) is not Tensor
    if is_whole or param.numel() <= BLOCK_ELEMENTS:
        return [slice(None)]
    rows = max(1, BLOCK_ELEMENTS * len(param) // param.numel())
    return [slice(first, first + rows) for first in range(0, len(param), rows)]


def _factors(
    gradient: Float[Tensor, "*shape"], blocks: list[slice], state: dict[str, Any], beta2: float
) -> tuple[Tensor, Tensor]:
    """Average the gradient's squares into the moments; return what scales its rows and columns.

    Both have the gradient's dimensions, of which the one that was averaged over is 1.
    """
    smaller, larger = cast("tuple[int, int]", factored_dims(gradient.shape))
    sums: dict[int, list[Tensor]] = {larger: [], smaller: []}
    for block in blocks:
        squared = gradient[block].square()
        for dim, of_dim in sums.items():
            of_dim.append(squared.sum(dim))
    moments: list[Tensor] = []
    for name, (dim, of_dim) in zip(("row_moment", "column_moment"), sums.items(), strict=True):
        total = of_dim[0]
        if len(blocks) > 1:
            total = torch.stack(of_dim).sum(0) if dim == 0 else torch.cat(of_dim)
        # What is added to every square is added to their means just as well.
        mean = total / gradient.shape[dim] + EPSILON
        moments.append(state[name].lerp_(mean, 1 - beta2))
    row, column = moments
    rows_axis = smaller - 1 if smaller > larger else smaller
    row_factor = (row / row.mean(rows_axis, keepdim=True)).rsqrt()
    return row_factor.unsqueeze(larger), column.rsqrt().unsqueeze(smaller)
