"""The `NMFormat` format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div, pack_bits, top_k, unpack_bits
from sparseflow.core.formats.base import FORMATS, ArraySpec, IndexFormat, KernelIndex
from sparseflow.errors import FormatError


@FORMATS.register("nm")
@dataclass(frozen=True)
class NMFormat(IndexFormat):
    """``n`` values of every ``m`` weights along ``axis``, each with its place in the group in ⌈log2 m⌉ bits.

    ``axis`` is moved last; its groups then follow one another in order. Groups with fewer non-zeros store
    zeros.

    arrays: ``indices`` uint8 (⌈groups·n·⌈log2 m⌉/8⌉,), packed, ascending in a group, ``data`` (groups, n).
    Bits: n_weights·(n/m)(v + ⌈log2 m⌉), the last byte filled up.

    References
    ----------
    Mishra et al., *Accelerating Sparse Deep Neural Networks*, 2021, section 3.1, figure 2.
    """

    n: int
    m: int
    axis: int = 1

    name: ClassVar[str] = "nm"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m or self.axis not in (0, 1):
            raise FormatError(
                f"NMFormat: {self.n}:{self.m} along axis {self.axis}; 1 <= N <= M and axis 0 or 1 are "
                "allowed, "
                "as in NMFormat(2, 4)"
            )

    @property
    def label(self) -> str:
        return f"{self.name}({self.n}:{self.m}" + (")" if self.axis == 1 else f",axis={self.axis})")

    @property
    def place_bits(self) -> int:
        """Bits of a place in a group, ⌈log2 m⌉."""
        return (self.m - 1).bit_length()

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if shape[self.axis] % self.m:
            raise FormatError(
                f"{self.label}: axis {self.axis} of a weight of shape {tuple(shape)} has {shape[self.axis]} "
                f"elements, which {self.m} does not divide; use another format"
            )

    def groups(self, shape: Shape) -> int:
        """Groups of a weight of ``shape``."""
        return int(np.prod(shape)) // self.m

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        groups = self.groups(shape)
        return (
            ArraySpec("indices", "uint8", (ceil_div(groups * self.n * self.place_bits, 8),), "index"),
            ArraySpec("data", str(dtype), (groups, self.n), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        grouped = np.moveaxis(weight, self.axis, -1).reshape(-1, self.m)
        keep = grouped != 0
        most = int(np.count_nonzero(keep, axis=1).max())
        if most > self.n:
            raise FormatError(
                f"{self.label}: a group of a weight of shape {weight.shape} has {most} non-zeros; at most "
                f"{self.n} "
                "fit; prune it to N:M first or use another format"
            )
        stored = top_k(keep.astype(np.uint8), self.n)
        places = np.nonzero(stored)[1]
        return {
            "indices": pack_bits(places, self.place_bits),
            "data": grouped[stored].reshape(-1, self.n),
        }

    def decode_arrays(self, index: KernelIndex) -> Array:
        moved = (*np.delete(index.shape, self.axis), index.shape[self.axis])
        grouped = np.zeros((self.groups(index.shape), self.m), index.dtype)
        np.put_along_axis(grouped, self._places(index), index.arrays["data"], axis=1)
        return np.ascontiguousarray(np.moveaxis(grouped.reshape(moved), -1, self.axis))

    def check_contents(self, index: KernelIndex) -> None:
        places = self._places(index)
        if places.max() >= self.m or (np.diff(places, axis=1) <= 0).any():
            raise self.refuse(
                index,
                "indices",
                "has places that do not rise",
                f"a group's places rise and are below {self.m}",
            )

    def _places(self, index: KernelIndex) -> Array:
        count = self.groups(index.shape) * self.n
        if self.place_bits == 0:
            return np.zeros((count, 1), dtype=np.int64)
        return unpack_bits(index.arrays["indices"], self.place_bits, count).reshape(-1, self.n)

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(2, 4), cls(4, 8), cls(1, 4), cls(2, 4, 0), cls(1, 1), cls(2, 3))
