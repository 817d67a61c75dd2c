"""The `BSR` format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div, smallest_uint
from sparseflow.core.formats.base import (
    FORMATS,
    ArraySpec,
    IndexFormat,
    KernelIndex,
    check_ascending,
    check_pointers,
    positions,
    segment_of,
)
from sparseflow.errors import FormatError


@FORMATS.register("bsr")
@dataclass(frozen=True)
class BSR(IndexFormat):
    """Block sparse rows: blocks of ``out`` filters × ``in_`` channels at one kernel position, stored whole.

    A block's column is ``position·⌈in/in_⌉ + channel block``; ragged last blocks are padded with zeros.

    arrays: ``indptr`` int32 (⌈out/a⌉ + 1,), ``indices`` (blocks,) of the smallest unsigned type, ascending in
    a row of blocks, ``data`` (blocks, a, b). Bits at block density d: dn(v + i/ab) + 32(⌈out/a⌉ + 1).

    References
    ----------
    Im and Yelick, *Optimizing Sparse Matrix Computations for Register Reuse in SPARSITY*, ICCS 2001, section
    2.
    """

    out: int
    in_: int

    name: ClassVar[str] = "bsr"

    def __post_init__(self) -> None:
        if self.out < 1 or self.in_ < 1:
            raise FormatError(
                f"BSR: blocks of {self.out}x{self.in_}; both sizes must be positive, as in BSR(4, 1)"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.out}x{self.in_})"

    def grid(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns of blocks of a weight of ``shape``."""
        return ceil_div(shape[0], self.out), positions(shape) * ceil_div(shape[1], self.in_)

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        rows, columns = self.grid(shape)
        return (
            ArraySpec("indptr", "int32", (rows + 1,), "index"),
            ArraySpec("indices", smallest_uint(columns - 1), ("blocks",), "index"),
            ArraySpec("data", str(dtype), ("blocks", self.out, self.in_), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        rows, columns = self.grid(weight.shape)
        count = positions(weight.shape)
        filters, channels = weight.shape[:2]
        padded = np.zeros((rows * self.out, count, columns // count * self.in_), weight.dtype)
        padded[:filters, :, :channels] = weight.reshape(filters, channels, count).swapaxes(1, 2)
        blocks = padded.reshape(rows, self.out, columns, self.in_).swapaxes(1, 2)
        row, column = np.nonzero((blocks != 0).any(axis=(2, 3)))
        counts = np.bincount(row, minlength=rows)
        return {
            "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            "indices": column.astype(smallest_uint(columns - 1)),
            "data": np.ascontiguousarray(blocks[row, column]),
        }

    def decode_arrays(self, index: KernelIndex) -> Array:
        rows, columns = self.grid(index.shape)
        count = positions(index.shape)
        filters, channels = index.shape[:2]
        blocks = np.zeros((rows, columns, self.out, self.in_), index.dtype)
        row = segment_of(index.arrays["indptr"])
        blocks[row, index.arrays["indices"]] = index.arrays["data"]
        padded = blocks.swapaxes(1, 2).reshape(rows * self.out, count, columns // count * self.in_)
        weight = padded[:filters, :, :channels].swapaxes(1, 2).reshape(index.shape)
        return np.ascontiguousarray(weight)

    def check_contents(self, index: KernelIndex) -> None:
        check_pointers(index, "indptr", len(index.arrays["indices"]))
        check_ascending(index, index.arrays["indptr"], "indices", self.grid(index.shape)[1])

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(4, 1), cls(1, 4), cls(4, 4))
