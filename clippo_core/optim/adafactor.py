"""Adafactor as "Scaling Vision Transformers" uses it (arXiv:2106.04560, section 3.4).

`torch.optim.Adafactor` is another one: no momentum, a step size relative to the parameters,
update clipping, and other rules for what is factored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DIM_FACTORED = 32
DECAY_EXPONENT = 0.8
BETA2_CAP = 0.999
EPSILON = 1e-30


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
        update = _scaled(gradient, state, beta2)
        # The reference keeps beta1 in the momentum's own type (0.9 is 0.8984 in bfloat16).
        beta1_as_stored = float(torch.tensor(group["beta1"], dtype=self.momentum_dtype))
        decayed = state["momentum"].mul_(beta1_as_stored)
        momentum = update.mul_(1 - group["beta1"]).add_(decayed)
        param.mul_(1 - group["weight_decay"]).sub_(momentum, alpha=group["lr"])
        state["momentum"].copy_(momentum)

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


def _scaled(
    gradient: Float[Tensor, "*shape"], state: dict[str, Any], beta2: float
) -> Float[Tensor, "*shape"]:
    """Average the gradient's squares into the second moment; return the gradient over its root."""
    squared = gradient.square()
    dims = factored_dims(gradient.shape)
    if dims is None:
        return gradient * state["second_moment"].lerp_(squared.add_(EPSILON), 1 - beta2).rsqrt()
    smaller, larger = dims
    # What is added to every square is added to their means just as well.
    row = state["row_moment"].lerp_(squared.mean(larger) + EPSILON, 1 - beta2)
    column = state["column_moment"].lerp_(squared.mean(smaller) + EPSILON, 1 - beta2)
    rows_axis = smaller - 1 if smaller > larger else smaller
    row_factor = (row / row.mean(rows_axis, keepdim=True)).rsqrt()
    # The squares' memory serves for the result.
    scaled = torch.mul(gradient, row_factor.unsqueeze(larger), out=squared)
    return scaled.mul_(column.rsqrt().unsqueeze(smaller))
