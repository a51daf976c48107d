"""Adafactor's update of a factored kernel in two passes over the memory, compiled.

A parameter is seen as [outer, row, inner, column], of whose dimensions `row` and `column` are the
factored ones. The functions are marked `no_type_check`, so that no run-time checker wraps what
numba has to see.
"""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, UInt16
from numba import njit

from clippo_core.bfloat16 import narrow, widen


# Sums in any order, so that a core adds up many at once.
@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
@no_type_check
def sum_squares(
    gradient: Float32[np.ndarray, "outer row inner column"],
    over_rows: Float32[np.ndarray, "outer inner column"],
    over_columns: Float32[np.ndarray, "outer row inner"],
) -> None:
    """Fill in the sums of squares over the two factored dimensions."""
    over_rows[:] = 0
    for outer in range(gradient.shape[0]):
        for row in range(gradient.shape[1]):
            for inner in range(gradient.shape[2]):
                values, sums = gradient[outer, row, inner], over_rows[outer, inner]
                total = np.float32(0)
                for column in range(values.size):
                    square = values[column] * values[column]
                    sums[column] += square
                    total += square
                over_columns[outer, row, inner] = total


@njit(cache=True, nogil=True)
@no_type_check
def apply_factors(
    param: Float32[np.ndarray, "outer row inner column"],
    gradient: Float32[np.ndarray, "outer row inner column"],
    momentum: UInt16[np.ndarray, "outer row inner column"],
    of_columns: Float32[np.ndarray, "outer inner column"],
    of_rows: Float32[np.ndarray, "outer row inner"],
    beta1: np.float32,
    beta1_as_stored: np.float32,
    kept: np.float32,
    lr: np.float32,
) -> None:
    """Average the scaled gradient into the momentum, a bfloat16; take it from what is kept."""
    new = np.float32(1) - beta1
    for outer in range(param.shape[0]):
        for row in range(param.shape[1]):
            factor_row = of_rows[outer, row]
            for inner in range(param.shape[2]):
                weights, values = param[outer, row, inner], gradient[outer, row, inner]
                stored, factors = momentum[outer, row, inner], of_columns[outer, inner]
                factor = factor_row[inner]
                for column in range(weights.size):
                    scaled = values[column] * factor * factors[column]
                    # Rounded to the momentum's type twice, as the reference does.
                    old = widen(narrow(widen(stored[column]) * beta1_as_stored))
                    mean = scaled * new + old
                    weights[column] = weights[column] * kept - lr * mean
                    stored[column] = narrow(mean)
