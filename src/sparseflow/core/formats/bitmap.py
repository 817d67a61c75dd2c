"""The `Bitmap` format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div
from sparseflow.core.formats.base import FORMATS, ArraySpec, IndexFormat, KernelIndex


@FORMATS.register("bitmap")
@dataclass(frozen=True)
class Bitmap(IndexFormat):
    """One bit per weight, and the non-zeros in order.

    arrays: ``bits`` uint8 (⌈n/8⌉,), weight 0 in the highest bit of byte 0, ``data`` (nnz,).
    Bits: n + dnv, the last byte filled up.

    References
    ----------
    Zhang et al., *SNAP*, JSSC 2021, section II; Gondimalla et al., *SparTen*, MICRO 2019, section 3.1.
    """

    name: ClassVar[str] = "bitmap"

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        return (
            ArraySpec("bits", "uint8", (ceil_div(math.prod(shape), 8),), "index"),
            ArraySpec("data", str(dtype), ("nnz",), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        keep = weight.reshape(-1) != 0
        return {"bits": np.packbits(keep), "data": weight.reshape(-1)[keep]}

    def decode_arrays(self, index: KernelIndex) -> Array:
        flat = np.zeros(math.prod(index.shape), index.dtype)
        flat[np.unpackbits(index.arrays["bits"], count=flat.size).astype(np.bool_)] = index.arrays["data"]
        return flat.reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        ones, values = int(np.unpackbits(index.arrays["bits"]).sum()), len(index.arrays["data"])
        size = math.prod(index.shape)
        if ones != values or np.unpackbits(index.arrays["bits"])[size:].any():
            raise self.refuse(
                index,
                "bits",
                f"has {ones} ones for {values} values",
                f"one bit per value among the first {size}",
            )

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(),)
