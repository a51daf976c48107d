"""Adafactor as "Scaling Vision Transformers" uses it (arXiv:2106.04560, section 3.4).

`torch.optim.Adafactor` is another one: no momentum, a step size relative to the parameters,
update clipping, and other rules for what is factored.
"""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clippo_core.optim.adafactor_loops import apply_factors, sum_squares
from clippo_core.threads import share_out

MIN_DIM_FACTORED = 32
DECAY_EXPONENT = 0.8
BETA2_CAP = 0.999
EPSILON = 1e-30


@dataclass(frozen=True, eq=False)
class Update:
    """What one parameter's update is made of; `state` and `param` change."""

    param: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    lr: float
    weight_decay: float
    beta1: float
    beta1_as_stored: float
    beta2: float


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
        compiled: list[Update] = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                update = self._prepare(param, param.grad, group)
                if _is_compiled(update):
                    compiled.append(update)
                else:
                    _apply(update)
        compiled.sort(key=lambda update: update.param.numel(), reverse=True)
        share_out(_apply_compiled, compiled)

    def _prepare(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> Update:
        state = self.state[param]
        if not state:
            state.update(self._initial_state(param))
        state["step"] += 1
        return Update(
            param,
            gradient,
            state,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            beta1=group["beta1"],
            # The reference keeps beta1 in the momentum's own type (0.9 is 0.8984 in bfloat16).
            beta1_as_stored=float(torch.tensor(group["beta1"], dtype=self.momentum_dtype)),
            beta2=min(BETA2_CAP, 1 - float(state["step"]) ** -DECAY_EXPONENT),
        )

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


def _apply(update: Update) -> None:
    gradient, state = update.gradient.float(), update.state
    if "row_moment" in state:
        row, column = _factors(update, gradient)
        scaled = (gradient * row).mul_(column)
    else:
        squared = gradient.square().add_(EPSILON)
        scaled = state["second_moment"].lerp_(squared, 1 - update.beta2).rsqrt().mul_(gradient)
    stored = state["momentum"]
    momentum = scaled.mul_(1 - update.beta1).add_(stored.mul_(update.beta1_as_stored))
    update.param.mul_(1 - update.weight_decay).sub_(momentum, alpha=update.lr)
    stored.copy_(momentum)


def _factors(update: Update, gradient: Float[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
    """Average the gradient's squares into the moments; return what scales its rows and columns.

    Both have the gradient's dimensions, of which the one that was averaged over is 1.
    """
    state = update.state
    smaller, larger = cast("tuple[int, int]", factored_dims(gradient.shape))
    squared = gradient.square()
    # What is added to every square is added to their means just as well.
    row, column = (
        state[name].lerp_(squared.sum(dim) / gradient.shape[dim] + EPSILON, 1 - update.beta2)
        for name, dim in (("row_moment", larger), ("column_moment", smaller))
    )
    rows_axis = smaller - 1 if smaller > larger else smaller
    row_factor = (row / row.mean(rows_axis, keepdim=True)).rsqrt()
    return row_factor.unsqueeze(larger), column.rsqrt().unsqueeze(smaller)


def _is_compiled(update: Update) -> bool:
    """Whether it is in this process's memory, in the layout and types that the loops are for."""
    param, gradient = update.param, update.gradient
    dims = factored_dims(param.shape)
    return (
        param.device.type == "cpu"
        # A divided parameter is of another type.
        and type(param.data) is Tensor
        and param.dtype == gradient.dtype == torch.float32
        and update.state["momentum"].dtype == torch.bfloat16
        and dims is not None
        and max(dims) == param.ndim - 1
        # Another layout would be copied, and what is written to the copy lost.
        and all(x.is_contiguous() for x in (param, gradient, *update.state.values()))
    )


def _apply_compiled(update: Update) -> None:
    """The same by compiled loops: what `_apply` writes in between stays in registers."""
    shape, state = update.param.shape, update.state
    smaller, larger = cast("tuple[int, int]", factored_dims(shape))
    first, last = sorted((smaller, larger))
    outer, inner = math.prod(shape[:first]), math.prod(shape[first + 1 : last])
    view = (outer, shape[first], inner, shape[last])
    param, gradient = (x.detach().numpy().reshape(view) for x in (update.param, update.gradient))
    momentum = state["momentum"].view(torch.uint16).numpy().reshape(view)
    over_first = np.empty((outer, inner, shape[last]), np.float32)
    over_last = np.empty((outer, shape[first], inner), np.float32)
    sum_squares(gradient, over_first, over_last)
    # Rows are what is left when the larger dimension is averaged over.
    of_dim = {first: over_first, last: over_last}
    factors: dict[int, np.ndarray[Any, Any]] = {}
    for name, dim in (("row_moment", larger), ("column_moment", smaller)):
        moment = state[name].numpy().reshape(of_dim[dim].shape)
        moment += (of_dim[dim] / shape[dim] + EPSILON - moment) * np.float32(1 - update.beta2)
        factors[dim] = moment
    rows_axis = 2 if larger == first else 1
    factors[larger] = factors[larger] / factors[larger].mean(rows_axis, keepdims=True)
    of_columns, of_rows = (1 / np.sqrt(factors[dim]) for dim in (first, last))
    rates = (update.beta1, update.beta1_as_stored, 1 - update.weight_decay, update.lr)
    apply_factors(param, gradient, momentum, of_columns, of_rows, *map(np.float32, rates))
