"""The `TapList` format: what the tap kernels run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div
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


@FORMATS.register("tap-list")
@dataclass(frozen=True)
class TapList(IndexFormat):
    """Taps shared by blocks of ``rows`` consecutive filters, ordered by (chunk of input channels, block).

    A tap is a column ``c·kh·kw + ky·kw + kx`` of the (out, in·kh·kw) matrix in which at least one filter of
    the block is non-zero; all ``rows`` values are stored, zeros included. The last block is padded with zero
    rows.

    arrays: ``indptr`` int32 (chunks·blocks + 1,), ``indices`` int32 (taps,) ascending inside a (chunk,
    block), ``data`` (taps, rows). With n weights of v bits at tap density d (taps·rows/n): d·n·(v + 32/rows)
    bits and 32·(chunks·blocks + 1) bits of pointers.

    Attributes
    ----------
    rows : int
        Filters that share taps.
    chunk : int or None
        Input channels of a chunk, None for all in one; the last may have fewer.
    """

    rows: int = 1
    chunk: int | None = None

    name: ClassVar[str] = "tap-list"

    def __post_init__(self) -> None:
        if self.rows < 1 or (self.chunk is not None and self.chunk < 1):
            raise FormatError(
                f"TapList: rows={self.rows}, chunk={self.chunk}; both must be positive (or chunk None)"
            )

    @property
    def label(self) -> str:
        chunk = "" if self.chunk is None else f",chunk={self.chunk}"
        return f"{self.name}(rows={self.rows}{chunk})"

    def blocks(self, shape: Shape) -> int:
        """Blocks of filters of a weight of ``shape``."""
        return ceil_div(shape[0], self.rows)

    def chunks(self, shape: Shape) -> int:
        """Chunks of input channels of a weight of ``shape``."""
        return 1 if self.chunk is None else ceil_div(shape[1], self.chunk)

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("indptr", "int32", (self.chunks(shape) * self.blocks(shape) + 1,), "index"),
            ArraySpec("indices", "int32", ("taps",), "index"),
            ArraySpec("data", str(dtype), ("taps", self.rows), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        blocks, chunks = self.blocks(weight.shape), self.chunks(weight.shape)
        columns = weight.shape[1] * positions(weight.shape)
        padded = weight.reshape(weight.shape[0], columns)
        missing = blocks * self.rows - weight.shape[0]
        if missing:
            padded = np.concatenate([padded, np.zeros((missing, columns), weight.dtype)])
        stacked = padded.reshape(blocks, self.rows, columns)
        block, column = np.nonzero((stacked != 0).any(axis=1))
        segment = self._chunk_of(column, weight.shape) * blocks + block
        order = np.argsort(segment, kind="stable")
        block, column = block[order], column[order]
        counts = np.bincount(segment, minlength=chunks * blocks)
        return {
            "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            "indices": column.astype(np.int32),
            "data": np.ascontiguousarray(stacked[block, :, column]),
        }

    def decode_arrays(self, index: KernelIndex) -> Array:
        blocks = self.blocks(index.shape)
        columns = index.shape[1] * positions(index.shape)
        segments = segment_of(index.arrays["indptr"])
        stacked = np.zeros((blocks, self.rows, columns), index.dtype)
        stacked[segments % blocks, :, index.arrays["indices"]] = index.arrays["data"]
        return stacked.reshape(-1, columns)[: index.shape[0]].reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        pointers, indices = index.arrays["indptr"], index.arrays["indices"]
        check_pointers(index, "indptr", len(indices))
        check_ascending(index, pointers, "indices", index.shape[1] * positions(index.shape))
        segments = segment_of(pointers)
        if (self._chunk_of(indices, index.shape) != segments // self.blocks(index.shape)).any():
            raise self.refuse(
                index, "indices", "holds taps of another chunk", "each chunk has its own channels"
            )

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(1), cls(2), cls(4), cls(8), cls(1, 16))

    def _chunk_of(self, column: Array, shape: Shape) -> Array:
        if self.chunk is None:
            return np.zeros_like(column)
        chunk: Array = column // (self.chunk * positions(shape))
        return chunk
