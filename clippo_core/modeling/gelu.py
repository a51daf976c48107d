"""GELU in its tanh form, which is Flax's default."""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from functools import cache, partial
from typing import Any, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Float32, UInt16
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from clippo_core.bfloat16 import narrow, widen
from clippo_core.threads import in_parts

#: Looked up at a time; with what is made of them they stay in a core's nearest cache.
_BLOCK = 2048


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

    Source: Flax `nn.gelu`. What is looked up equals what torch computes, bit for bit
    (tests/unit/test_gelu.py).
    """
    is_looked_up = (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    )
    return _LookedUp.apply(x) if is_looked_up else F.gelu(x, approximate="tanh")


class _LookedUp(torch.autograd.Function):
    """A bfloat16 has 65,536 values, and a CPU's core computes a tanh slowly."""

    @staticmethod
    def forward(ctx: Any, x: BFloat16[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
        x = x.contiguous()
        ctx.save_for_backward(x)
        result = torch.empty_like(x)
        values, _ = _tables()
        in_parts(partial(_look_up, values), _bits(x), _bits(result))
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator is untyped
        ctx: Any, *upstream: BFloat16[Tensor, "*shape"]
    ) -> BFloat16[Tensor, "*shape"]:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        _, slopes = _tables()
        of_x, upwards = _bits(x), _bits(upstream[0].contiguous())
        in_parts(partial(_differentiate, slopes), of_x, upwards, _bits(result))
        return result


def _bits(values: BFloat16[Tensor, "*shape"]) -> UInt16[np.ndarray, " value"]:
    """The same memory, as numbers of 16 bits."""
    return values.detach().view(torch.uint16).flatten().numpy()


@cache
def _tables() -> tuple[UInt16[np.ndarray, " bits"], Float32[np.ndarray, " bits"]]:
    """By the bits of x: those of its GELU, and its slope."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    slopes = torch.ops.aten.gelu_backward(torch.ones(2**16), x.float(), approximate="tanh")
    return _bits(F.gelu(x, approximate="tanh")), slopes.numpy()


@njit(cache=True, nogil=True)
@no_type_check
def _look_up(
    table: UInt16[np.ndarray, " bits"],
    x: UInt16[np.ndarray, " value"],
    result: UInt16[np.ndarray, " value"],
) -> None:
    # Unsigned, as numba looks at the sign of every index otherwise.
    for i in range(np.uint64(x.size)):
        result[i] = table[x[i]]


@njit(cache=True, nogil=True)
@no_type_check
def _differentiate(
    slopes: Float32[np.ndarray, " bits"],
    x: UInt16[np.ndarray, " value"],
    upstream: UInt16[np.ndarray, " value"],
    result: UInt16[np.ndarray, " value"],
) -> None:
    found = np.empty(_BLOCK, np.float32)
    for start in range(0, x.size, _BLOCK):
        stop = min(start + _BLOCK, x.size)
        bits, of_block, product = x[start:stop], upstream[start:stop], result[start:stop]
        for i in range(np.uint64(bits.size)):
            found[i] = slopes[bits[i]]
        # A loop of its own, since a core computes many of these at once, but looks up one by one.
        for i in range(bits.size):
            product[i] = narrow(found[i] * widen(of_block[i]))
