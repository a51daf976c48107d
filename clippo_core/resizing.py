"""Compiled bilinear resizing: the authors' without antialiasing, and Pillow's with it.

The compiled functions are marked `no_type_check`, so that no run-time checker wraps what numba has
to see.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from numba import njit

#: Bits behind the point of the fixed-point weights, as in Pillow.
_WEIGHT_BITS = 22


def resize_bilinear(
    image: UInt8[np.ndarray, "height_px width_px 3"], *, image_size_px: int
) -> UInt8[np.ndarray, "canvas_px canvas_px 3"]:
    """Resize without antialiasing, computed in float32 and truncated, as the authors do.

    Source: big_vision `pp_resize` at 0127fb6 (TensorFlow's `image.resize` with half-pixel
    centres); equality shown in tests/parity/test_resizing.py.
    """
    down, across = (_neighbours(size, image_size_px) for size in image.shape[:2])
    return _interpolate(np.ascontiguousarray(image), down, across)


class _Neighbours(NamedTuple):
    """Lower and upper neighbour of each target pixel on one axis, and its place between them."""

    lower: Int64[np.ndarray, " out"]
    upper: Int64[np.ndarray, " out"]
    way: Float32[np.ndarray, " out"]


def _neighbours(size_in: int, size_out: int) -> _Neighbours:
    scale = np.float32(size_in) / np.float32(size_out)
    position = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    lower = np.floor(position)
    last = size_in - 1
    first, second = (np.clip(lower + step, 0, last).astype(np.int64) for step in (0, 1))
    return _Neighbours(first, second, position - lower)


@njit(cache=True, nogil=True)
@no_type_check
def _interpolate(
    image: UInt8[np.ndarray, "height_px width_px 3"], down: _Neighbours, across: _Neighbours
) -> UInt8[np.ndarray, "out_y out_x 3"]:
    resized = np.empty((len(down.way), len(across.way), 3), np.uint8)
    for y in range(len(down.way)):
        upper, lower = image[down.lower[y]], image[down.upper[y]]
        for x in range(len(across.way)):
            left, right, way = across.lower[x], across.upper[x], across.way[x]
            for channel in range(3):
                # Each sum and product rounded to float32 by itself: the reference fuses none.
                top_left, bottom_left = (
                    np.float32(upper[left, channel]),
                    np.float32(lower[left, channel]),
                )
                top = top_left + (np.float32(upper[right, channel]) - top_left) * way
                bottom = bottom_left + (np.float32(lower[right, channel]) - bottom_left) * way
                resized[y, x, channel] = np.uint8(top + (bottom - top) * down.way[y])
    return resized


class _Taps(NamedTuple):
    """First source pixel, number of source pixels and weights of each target pixel on an axis."""

    first: Int32[np.ndarray, " out"]
    length: Int32[np.ndarray, " out"]
    weights: Int32[np.ndarray, "out tap"]


def resize_antialiased(
    image: UInt8[np.ndarray, "height_px width_px *channel"], *, image_size_px: int
) -> UInt8[np.ndarray, "canvas_px canvas_px *channel"]:
    """Resize a picture to a square canvas; each target pixel averages what it covers.

    A triangle as wide as two target pixels (two source pixels, when enlarging) weighs the source;
    down first, then across, each rounded to 8 bits.

    Source: Pillow `Resample.c` with `Resampling.BILINEAR`, which goes across first where it takes
    that for cheaper; then the two roundings differ by a grey level, as tests/unit/test_images.py
    shows. Down is cheaper here: it runs along the memory.

    Args:
        image: RGB, or grey levels without a dimension for channels.
        image_size_px: side of the canvas.
    """
    height, width = image.shape[:2]
    across, down = _taps(width, image_size_px), _taps(height, image_size_px)
    rows = _resize_down(np.ascontiguousarray(image).reshape(height, -1), *down)
    if image.ndim == 2:
        return _resize_down(np.ascontiguousarray(rows.T), *across).T
    return _resize_across(rows, *across).reshape(image_size_px, image_size_px, 3)


@lru_cache(maxsize=256)
def _taps(size_in: int, size_out: int) -> _Taps:
    scale = size_in / size_out
    support = max(scale, 1.0)
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int32), 0)
    end = np.minimum((center + support + 0.5).astype(np.int32), size_in)
    tap = np.arange(int((end - first).max()))
    distance = np.abs((tap + first[:, None] - center[:, None] + 0.5) / support)
    weights = np.where(tap < (end - first)[:, None], np.maximum(1 - distance, 0), 0)
    weights /= weights.sum(1, keepdims=True)
    fixed = np.floor(weights * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)
    return _Taps(first, (end - first).astype(np.int32), fixed)


@njit(cache=True, nogil=True)
@no_type_check
def _resize_down(
    image: UInt8[np.ndarray, "height_px value"],
    first: Int32[np.ndarray, " out"],
    count: Int32[np.ndarray, " out"],
    weights: Int32[np.ndarray, "out tap"],
) -> UInt8[np.ndarray, "out value"]:
    resized = np.empty((len(first), image.shape[1]), np.uint8)
    total = np.empty(image.shape[1], np.int32)
    for y in range(len(first)):
        total[:] = 1 << (_WEIGHT_BITS - 1)
        for tap in range(count[y]):
            weight = weights[y, tap]
            row = image[first[y] + tap]
            for x in range(len(total)):
                total[x] += row[x] * weight
        for x in range(len(total)):
            resized[y, x] = total[x] >> _WEIGHT_BITS
    return resized


@njit(cache=True, nogil=True)
@no_type_check
def _resize_across(
    rows: UInt8[np.ndarray, "row width_px_x_3"],
    first: Int32[np.ndarray, " out"],
    count: Int32[np.ndarray, " out"],
    weights: Int32[np.ndarray, "out tap"],
) -> UInt8[np.ndarray, "row out_x_3"]:
    resized = np.empty((rows.shape[0], 3 * len(first)), np.uint8)
    half, channels = np.int32(1 << (_WEIGHT_BITS - 1)), np.uint64(3)
    for y in range(rows.shape[0]):
        row, out = rows[y], resized[y]
        for x in range(np.uint64(len(first))):
            red = green = blue = half
            # Unsigned, as numba looks at the sign of every index otherwise: a third slower.
            at = np.uint64(first[x]) * channels
            for tap in range(np.uint64(count[x])):
                weight = weights[x, tap]
                red += np.int32(row[at]) * weight
                green += np.int32(row[at + np.uint64(1)]) * weight
                blue += np.int32(row[at + np.uint64(2)]) * weight
                at += channels
            out[channels * x] = red >> _WEIGHT_BITS
            out[channels * x + np.uint64(1)] = green >> _WEIGHT_BITS
            out[channels * x + np.uint64(2)] = blue >> _WEIGHT_BITS
    return resized
