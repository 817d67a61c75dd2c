"""The `ELL` format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, smallest_uint
from sparseflow.core.formats.base import FORMATS, ArraySpec, IndexFormat, KernelIndex, positions


@FORMATS.register("ell")
@dataclass(frozen=True)
class ELL(IndexFormat):
    """Every row of the (out, in·kh·kw) matrix padded to as many entries as the longest has.

    arrays: ``indices`` (out, Kmax) of the smallest unsigned type, ``data`` (out, Kmax); a row's entries
    ascend, its padding is value 0 at column 0. Bits: out·Kmax(v + i).

    References
    ----------
    Grimes, Kincaid and Young, *ITPACK 2.0 User's Guide*, 1979; Bell and Garland, SC 2009, section 3.2.
    """

    name: ClassVar[str] = "ell"

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        index = smallest_uint(shape[1] * positions(shape) - 1)
        return (
            ArraySpec("indices", index, (shape[0], "longest row"), "index"),
            ArraySpec("data", str(dtype), (shape[0], "longest row"), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        matrix = weight.reshape(weight.shape[0], -1)
        keep = matrix != 0
        counts = np.count_nonzero(keep, axis=1)
        rows, columns = np.nonzero(keep)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        extent = (len(matrix), int(counts.max()))
        indices = np.zeros(extent, smallest_uint(matrix.shape[1] - 1))
        data = np.zeros(extent, weight.dtype)
        indices[rows, slots] = columns
        data[rows, slots] = matrix[keep]
        return {"indices": indices, "data": data}

    def decode_arrays(self, index: KernelIndex) -> Array:
        matrix = np.zeros((index.shape[0], index.shape[1] * positions(index.shape)), index.dtype)
        rows, slots = np.nonzero(index.arrays["data"] != 0)
        matrix[rows, index.arrays["indices"][rows, slots]] = index.arrays["data"][rows, slots]
        return matrix.reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        columns = index.shape[1] * positions(index.shape)
        indices = index.arrays["indices"].astype(np.int64)
        used = index.arrays["data"] != 0
        if indices.size and indices.max() >= columns:
            raise self.refuse(
                index, "indices", f"holds {indices.max()}", f"entries must lie in [0, {columns})"
            )
        if (used[:, 1:] & ~used[:, :-1]).any() or (used[:, 1:] & (np.diff(indices, axis=1) <= 0)).any():
            raise self.refuse(
                index,
                "indices",
                "has a row that does not rise",
                "a row's entries rise and its padding comes last",
            )

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(),)
