"""Adafactor as "Scaling Vision Transformers" uses it (arXiv:2106.04560, section 3.4).

`torch.optim.Adafactor` is another one: no momentum, a step size relative to the parameters,
update clipping, and other rules for what is factored.
"""

# torch's optimizers are made of these functions, and no public name calls them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DIM_FACTORED = 32
DECAY_EXPONENT = 0.8
BETA2_CAP = 0.999
EPSILON = 1e-30
#: Largest count of numbers that are updated together: few kernels, and little memory beside the
#: gradients.
MAX_STACKED = 2**24


class Adafactor(torch.optim.Optimizer):
    """Optimizer with a factored second moment, momentum of the update, and absolute step sizes.

    With `b_t = min(0.999, 1 - t^-0.8)` for update `t = 1, 2, ...`, the second moment is
    `v <- b_t v + (1 - b_t) (g^2 + 1e-30)`, kept as its means over the rows and over the columns of
    the two largest dimensions where both are at least 32. The update `u = g / sqrt(v)` is averaged
    into the momentum, `m <- beta1 m + (1 - beta1) u`, and `p <- p - lr m - weight_decay p`.

    Weight decay is not multiplied by the learning rate; the caller multiplies both by the schedule.
    Parameters of equal shape, such as one layer's in all blocks, are updated together.

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
            momentum_dtype: number type of the stored momentum, which is computed in float32.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta1": beta1})
        self.momentum_dtype = momentum_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Adafactor takes no closure; call backward() before step()")
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.state[param].update(self._initial_state(param))
                self.state[param]["step"] += 1
            for alike in self._stacks(params):
                self._update(alike, group)

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

    def _stacks(self, params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield parameters that can be updated together: of one shape, and as often updated."""
        alike: dict[Any, list[Tensor]] = {}
        for param in params:
            # A parameter that is divided over ranks is a type of its own, and stays alone.
            alone = None if type(param.data) is Tensor else id(param)
            key = (param.shape, param.device, param.dtype, float(self.state[param]["step"]), alone)
            alike.setdefault(key, []).append(param)
        for found in alike.values():
            count = max(MAX_STACKED // max(found[0].numel(), 1), 1)
            for start in range(0, len(found), count):
                yield found[start : start + count]

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[param] for param in params]
        beta2 = min(BETA2_CAP, 1 - float(states[0]["step"]) ** -DECAY_EXPONENT)
        gradient = _stacked([param.grad for param in params if param.grad is not None]).float()
        scaled = _scaled(gradient, states, beta2)
        momenta = [state["momentum"] for state in states]
        # The reference keeps beta1 in the momentum's own type (0.9 is 0.8984 in bfloat16).
        beta1_as_stored = float(torch.tensor(group["beta1"], dtype=self.momentum_dtype))
        momentum = scaled.mul_(1 - group["beta1"]).add_(_stacked(momenta) * beta1_as_stored)
        updates = list(momentum.unbind(0))
        # One kernel for all weights; torch does not publish these names, its optimizers use them.
        torch._foreach_mul_(params, 1 - group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"])
        _store(momenta, momentum)


def factored_dims(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the two largest dimensions, the smaller one first; None if one of them is under 32."""
    by_size = sorted(range(len(shape)), key=lambda dim: shape[dim])
    if len(shape) < 2 or shape[by_size[-2]] < MIN_DIM_FACTORED:
        return None
    return by_size[-2], by_size[-1]


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _scaled(
    gradient: Float[Tensor, "stack *shape"], states: Sequence[dict[str, Tensor]], beta2: float
) -> Float[Tensor, "stack *shape"]:
    """Average the gradients' squares into the moments; return the gradients over their roots."""
    dims = factored_dims(gradient.shape[1:])
    squared = gradient.square()
    if dims is None:
        moment = _averaged("second_moment", squared.add_(EPSILON), states, beta2)
        return moment.rsqrt().mul_(gradient)
    smaller, larger = (dim + 1 for dim in dims)
    # Epsilon is added to the means, which is the same as adding it to every square.
    row, column = (
        _averaged(name, squared.sum(dim) / gradient.shape[dim] + EPSILON, states, beta2)
        for name, dim in (("row_moment", larger), ("column_moment", smaller))
    )
    rows_axis = smaller - 1 if smaller > larger else smaller
    of_rows = (row / row.mean(rows_axis, keepdim=True)).rsqrt().unsqueeze(larger)
    return (gradient * of_rows).mul_(column.rsqrt().unsqueeze(smaller))


def _averaged(
    name: str,
    new: Float[Tensor, "stack *shape"],
    states: Sequence[dict[str, Tensor]],
    beta2: float,
) -> Float[Tensor, "stack *shape"]:
    """Average new values into the named moment and return it."""
    stored = [state[name] for state in states]
    moment = torch.lerp(_stacked(stored), new, 1 - beta2)
    _store(stored, moment)
    return moment


def _store(places: Sequence[Tensor], stack: Tensor) -> None:
    """Write a stack's tensors to their places, each rounded to the place's type."""
    if len(places) == 1:  # as a parameter divided over ranks is, which has no joint copy
        places[0].copy_(stack[0])
    else:
        torch._foreach_copy_(list(places), list(stack.unbind(0)))
