"""Array helpers that structures, formats and detection share: exact top-k, sums over blocks, bit packing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Keep = NDArray[np.bool_]
Shape = tuple[int, ...]


def round_half_up(value: float) -> int:
    """``value`` to the nearest integer, halves upwards (4.5 → 5); float noise below 1e-9 is ignored."""
    return math.floor(round(value, 9) + 0.5)


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉ for positive ``b``."""
    return -(-a // b)


def smallest_uint(largest: int) -> str:
    """Name of the smallest unsigned NumPy type that holds ``largest``."""
    return str(np.min_scalar_type(max(largest, 0)))


def top_k(scores: Array, k: int) -> Keep:
    """The ``k`` largest of each row; equal scores are taken in index order.

    Parameters
    ----------
    scores : ndarray, shape (rows, n)
    k : int
        0 ≤ k ≤ n.

    Returns
    -------
    ndarray of bool, shape (rows, n)
        Exactly ``k`` true in each row.
    """
    n = scores.shape[1]
    if k <= 0 or k >= n:
        return np.full(scores.shape, k > 0 and n > 0)
    threshold = np.partition(scores, n - k, axis=1)[:, n - k, None]
    keep: Keep = scores > threshold
    ties = scores == threshold
    missing = k - keep.sum(axis=1, keepdims=True)
    if np.array_equal(ties.sum(axis=1, keepdims=True), missing):
        keep |= ties
        return keep
    keep |= ties & (np.cumsum(ties, axis=1, dtype=np.int32) <= missing)
    return keep


def reduce_blocks(ufunc: np.ufunc, x: Array, block: Shape) -> Array:
    """``ufunc`` reduced over blocks of extents ``block``; the last block of an axis may be ragged.

    Parameters
    ----------
    ufunc : numpy.ufunc
        ``np.add`` or ``np.logical_or``.
    x : ndarray, shape (n0, n1, ...)
    block : tuple of int
        Extent of a block along each axis.

    Returns
    -------
    ndarray, shape (⌈n0/b0⌉, ⌈n1/b1⌉, ...)
    """
    for axis in reversed(range(x.ndim)):
        n, b = x.shape[axis], block[axis]
        if b >= n:
            if n > 1:
                x = ufunc.reduce(x, axis=axis, keepdims=True)
        elif b > 1 and n % b == 0:
            x = ufunc.reduce(x.reshape(*x.shape[:axis], n // b, b, *x.shape[axis + 1 :]), axis=axis + 1)
        elif b > 1:
            x = ufunc.reduceat(x, np.arange(0, n, b), axis=axis)
    return x


def expand_blocks(x: Array, block: Shape, shape: Shape) -> Array:
    """The inverse of `reduce_blocks`: each element repeated over its block, cut to ``shape``."""
    for axis, (n, b) in enumerate(zip(shape, block, strict=True)):
        if b > 1 and x.shape[axis] != n:
            x = np.repeat(x, b, axis=axis)
            x = x[(slice(None),) * axis + (slice(0, n),)]
    return np.ascontiguousarray(np.broadcast_to(x, shape))


def block_sizes(block: Shape, shape: Shape) -> Array:
    """Number of elements in each block, ragged ones included; shape as of `reduce_blocks`."""
    sizes = np.ones((1,) * len(shape), dtype=np.int64)
    for axis, (n, b) in enumerate(zip(shape, block, strict=True)):
        lengths = np.diff(np.append(np.arange(0, n, b), n))
        sizes = sizes * lengths.reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return sizes


def pack_bits(values: Array, bits: int) -> NDArray[np.uint8]:
    """Unsigned integers packed at ``bits`` bits each, most significant bit first; ⌈n·bits/8⌉ bytes."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    unpacked = (values.reshape(-1, 1).astype(np.uint32) >> shifts) & 1
    return np.packbits(unpacked.astype(np.uint8).reshape(-1))


def unpack_bits(packed: Array, bits: int, count: int) -> NDArray[np.int64]:
    """The ``count`` integers that `pack_bits` packed."""
    flat = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.int64)
    return flat @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
