"""Squares of numbers transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

Expr = Any


def transposed(rows: Sequence[Expr]) -> list[Expr]:
    """The columns of a square of vectors: log2 steps that swap halves, quarters, … between pairs of rows.

    References
    ----------
    J. O. Eklundh, "A Fast Computer Method for Matrix Transposing", IEEE Transactions on Computers, 1972.
    """
    n, rows = len(rows), list(rows)
    step = n // 2
    while step:
        low = [T.int32(k if not k & step else n + k - step) for k in range(n)]
        high = [T.int32(k + step if not k & step else n + k) for k in range(n)]
        for i in range(n):
            if not i & step:
                pair = [rows[i], rows[i + step]]
                rows[i], rows[i + step] = (T.bind(tirx.Shuffle(pair, order)) for order in (low, high))
        step //= 2
    return rows
