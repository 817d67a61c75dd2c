"""The `CSR` format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from sparseflow.core.arrays import Array, Shape, smallest_uint
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


@FORMATS.register("csr")
@dataclass(frozen=True)
class CSR(IndexFormat):
    """Compressed sparse rows of the (out, in·kh·kw) matrix.

    arrays: ``indptr`` int32 (out + 1,), ``indices`` (nnz,) columns ascending in a row, ``data`` (nnz,).
    Bits: dn(v + i) + 32(out + 1).

    Attributes
    ----------
    index : str
        ``smallest``: the smallest unsigned type that holds a column; ``int32``: as SciPy has it.

    References
    ----------
    Saad, *Iterative Methods for Sparse Linear Systems*, 2003, section 3.4.
    """

    index: Literal["smallest", "int32"] = "smallest"

    name: ClassVar[str] = "csr"

    def __post_init__(self) -> None:
        if self.index not in ("smallest", "int32"):
            raise FormatError(f"CSR: index type {self.index!r}; smallest or int32 is allowed")

    @property
    def label(self) -> str:
        return self.name if self.index == "smallest" else f"{self.name}(index={self.index})"

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        columns = shape[1] * positions(shape)
        index = smallest_uint(columns - 1) if self.index == "smallest" else "int32"
        return (
            ArraySpec("indptr", "int32", (shape[0] + 1,), "index"),
            ArraySpec("indices", index, ("nnz",), "index"),
            ArraySpec("data", str(dtype), ("nnz",), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        matrix = weight.reshape(weight.shape[0], -1)
        keep = matrix != 0
        _, columns = np.nonzero(keep)
        counts = np.count_nonzero(keep, axis=1)
        return {
            "indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            "indices": columns.astype(self.array_specs(weight.shape, weight.dtype)[1].dtype),
            "data": matrix[keep],
        }

    def decode_arrays(self, index: KernelIndex) -> Array:
        matrix = np.zeros((index.shape[0], index.shape[1] * positions(index.shape)), index.dtype)
        rows = segment_of(index.arrays["indptr"])
        matrix[rows, index.arrays["indices"]] = index.arrays["data"]
        return matrix.reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        check_pointers(index, "indptr", len(index.arrays["indices"]))
        check_ascending(index, index.arrays["indptr"], "indices", index.shape[1] * positions(index.shape))

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(), cls("int32"))
