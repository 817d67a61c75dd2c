"""The `RunLength` format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div, pack_bits, unpack_bits
from sparseflow.core.formats.base import FORMATS, ArraySpec, IndexFormat, KernelIndex
from sparseflow.errors import FormatError


@FORMATS.register("run-length")
@dataclass(frozen=True)
class RunLength(IndexFormat):
    """Each stored value with the number of zeros before it, in ``bits`` bits; long runs take filler zeros.

    A gap of 2^bits zeros or more is broken by stored zeros, each of which stands for 2^bits weights. Zeros
    after the last value are not stored.

    arrays: ``gaps`` uint8 (⌈entries·bits/8⌉,), packed, ``data`` (entries,), fillers included.
    Expected bits: dn(v + L)(1 + f), f = q/(1 − q), q = (1 − d)^(2^L).

    References
    ----------
    Han et al., *Deep Compression*, ICLR 2016, section 2, figure 2; *EIE*, ISCA 2016, section III.B.
    """

    bits: int = 4

    name: ClassVar[str] = "run-length"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise FormatError(f"RunLength: gaps of {self.bits} bits; 1 to 16 are possible, 4 is usual")

    @property
    def label(self) -> str:
        return f"{self.name}(bits={self.bits})"

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("gaps", "uint8", ("gap bytes",), "index"),
            ArraySpec("data", str(dtype), ("entries",), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        flat = weight.reshape(-1)
        places = np.flatnonzero(flat)
        gaps = np.diff(places, prepend=-1) - 1
        span = 1 << self.bits
        fillers = gaps // span
        ends = np.cumsum(fillers + 1) - 1
        entries = int(ends[-1]) + 1 if len(ends) else 0
        data = np.zeros(entries, weight.dtype)
        data[ends] = flat[places]
        stored = np.full(entries, span - 1)
        stored[ends] = gaps % span
        return {"gaps": pack_bits(stored, self.bits), "data": data}

    def decode_arrays(self, index: KernelIndex) -> Array:
        flat = np.zeros(math.prod(index.shape), index.dtype)
        flat[self._places(index)] = index.arrays["data"]
        return flat.reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        entries, found = len(index.arrays["data"]), len(index.arrays["gaps"])
        wanted = ceil_div(entries * self.bits, 8)
        if found != wanted:
            raise self.refuse(
                index, "gaps", f"has {found} bytes for {entries} values", f"{wanted} bytes hold their gaps"
            )
        places = self._places(index)
        if entries and places[-1] >= math.prod(index.shape):
            raise self.refuse(
                index, "gaps", f"reaches weight {places[-1]}", f"there are {math.prod(index.shape)} weights"
            )

    def _places(self, index: KernelIndex) -> Array:
        gaps = unpack_bits(index.arrays["gaps"], self.bits, len(index.arrays["data"]))
        places: Array = np.cumsum(gaps + 1) - 1
        return places

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(4), cls(1), cls(8))
