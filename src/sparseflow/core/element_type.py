"""Element types: how numbers are stored and in which type their products are summed. One instance a type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.errors import ElementTypeError
from sparseflow.registry import Registry

SLOT_BITS = 32


@dataclass(frozen=True)
class ElementType:
    """A type of the elements of weights or feature maps.

    Invariant: ``decode(encode(x))`` differs from ``x`` by at most `step` · \\|x\\|, or by `tiny` where that is larger.

    Attributes
    ----------
    name : str
    bits : int
        Of one stored element.
    storage : str
        NumPy's and TVM's name of the type that holds the stored bits.
    accumulator : str
        Name of the type of sums of products.
    largest : float
        Magnitude of the largest finite number.
    step : float
        Relative rounding error: half a unit in the last place.
    tiny : float
        Absolute rounding error near zero, where numbers are subnormal.
    zero : float
        The number that is left out when a tensor is sparse.
    """

    name: str
    bits: int
    storage: str
    accumulator: str
    largest: float
    step: float
    tiny: float
    zero: float = 0.0

    @property
    def unit(self) -> ElementType:
        """The type without what is each tensor's own: kernels of equal ones are the same."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return self.bits // 8

    @property
    def per_slot(self) -> int:
        """How many share a slot of 32 bits, the size of a sum: a vector of slots holds so many maps' channels."""
        return SLOT_BITS // self.bits

    @property
    def slot(self) -> str:
        """NumPy's and TVM's name of the type of a slot."""
        return self.storage if self.per_slot == 1 else "int32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type that holds the stored bits."""
        return np.dtype(self.storage)

    def encode(self, values: Array) -> Array:
        """``values`` rounded to the nearest number of this type, ties to even, as `storage`; same shape.

        Raises
        ------
        ElementTypeError
            If a finite value lies outside of the type's range.
        """
        values = np.asarray(values, np.float32)
        stored = self._stored(values)
        lost = np.isfinite(values) & ~np.isfinite(self.decode(stored))
        if lost.any():
            raise ElementTypeError(
                f"{self.name}: found a value of magnitude {float(np.abs(values[lost]).max()):.4g}; allowed: up to "
                f"{self.largest:.4g}; keep such weights in float32 or scale them down"
            )
        return stored

    def decode(self, stored: Array) -> Array:
        """The float32 numbers that ``stored`` holds; same shape, exact.

        Raises
        ------
        ElementTypeError
            If it is not an array of `storage`.
        """
        if stored.dtype != self.dtype:
            raise ElementTypeError(f"{self.name}: found an array of {stored.dtype}; allowed: {self.storage}")
        return self._values(stored)

    def joined(self, values: Array, axis: int) -> Array:
        """``values`` as stored, `per_slot` neighbours along ``axis`` in one slot; missing ones at the end are zeros.

        A slot of zeros is 0, whatever their signs.
        """
        if self.per_slot == 1:
            return self.encode(values)
        last = np.moveaxis(self.encode(self.rounded(values) + np.float32(0.0)), axis, -1)
        spare = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % self.per_slot)]
        slots = np.ascontiguousarray(np.pad(last, spare)).view(self.slot)
        return np.ascontiguousarray(np.moveaxis(slots, -1, axis))

    def parted(self, slots: Array, axis: int, count: int) -> Array:
        """The inverse of `joined`: the first ``count`` float32 numbers along ``axis``."""
        last = np.ascontiguousarray(np.moveaxis(slots, axis, -1)).view(self.dtype)[..., :count]
        return np.moveaxis(self.decode(last), -1, axis)

    def _stored(self, values: Array) -> Array:
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def _values(self, stored: Array) -> Array:
        return stored.astype(np.float32)

    def rounded(self, values: Array) -> Array:
        """``values`` as float32 numbers that this type holds exactly."""
        return self.decode(self.encode(values))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class UpperHalf(ElementType):
    """The upper half of a float32, whose bits travel as ``uint16``: NumPy has no such type."""

    def _stored(self, values: Array) -> Array:
        bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        # a NaN whose mantissa is rounded up would become an infinity: keep its upper half and set the quiet bit
        return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)

    def _values(self, stored: Array) -> Array:
        return (stored.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Quantised(ElementType):
    """Whole numbers, levels, that stand for ``scale * (level - zero_point)``; a value beyond the last is the last.

    Attributes
    ----------
    scale : float
        What one level is worth.
    zero_point : int
        The level of the number 0.
    """

    scale: float = 1.0
    zero_point: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def unit(self) -> Quantised:
        """See `ElementType.unit`: the scale; the zero point stands around maps."""
        return replace(self, scale=1.0)

    @property
    def lowest(self) -> int:
        """The first level."""
        return int(np.iinfo(self.storage).min)

    @property
    def highest(self) -> int:
        """The last level."""
        return int(np.iinfo(self.storage).max)

    @property
    def range(self) -> tuple[float, float]:
        """What the first and the last level stand for."""
        return tuple(self.scale * (level - self.zero_point) for level in (self.lowest, self.highest))  # type: ignore[return-value]

    def at(self, scale: float, zero_point: int = 0) -> Quantised:
        """This type with another meaning of its levels."""
        return replace(self, scale=scale, zero_point=zero_point)

    def covering(self, low: float, high: float) -> Quantised:
        """This type with evenly spaced levels from ``low`` to ``high``, widened to hold 0, which is a level.

        Raises
        ------
        ElementTypeError
            If a bound is not finite.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if not np.isfinite(high - low):
            raise ElementTypeError(
                f"{self.name}: found the range {low:g} to {high:g}; allowed: finite bounds"
            )
        scale = float(np.float32((high - low) / (self.highest - self.lowest))) or 1.0
        return self.at(scale, round(self.lowest - low / scale))

    def _stored(self, values: Array) -> Array:
        levels = np.rint(values / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.clip(np.nan_to_num(levels), self.lowest, self.highest).astype(self.dtype)

    def _values(self, stored: Array) -> Array:
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


FLOAT32 = ElementType("float32", 32, "float32", "float32", 3.4028235e38, 2.0**-24, 0.0)
FLOAT16 = ElementType("float16", 16, "float16", "float32", 65504.0, 2.0**-11, 2.0**-25)
BFLOAT16 = UpperHalf("bfloat16", 16, "uint16", "float32", 3.3895314e38, 2.0**-8, 2.0**-134)
INT8 = Quantised("int8", 8, "int8", "int32", 127.0, 0.0, 0.5)
UINT8 = Quantised("uint8", 8, "uint8", "int32", 255.0, 0.0, 0.5)
INT32 = Quantised("int32", 32, "int32", "int32", 2147483520.0, 2.0**-24, 0.5)
"""Sums of products of the two before; as float32 numbers, whose digits end at 2**24."""

ELEMENT_TYPES: Registry[ElementType] = Registry("element type")
"""Those that hold numbers as they are."""
QUANTISED: Registry[Quantised] = Registry("quantised type")
"""Those that hold levels."""
for _element in (FLOAT32, FLOAT16, BFLOAT16):
    ELEMENT_TYPES.register(_element.name)(_element)
for _levels in (INT8, UINT8, INT32):
    QUANTISED.register(_levels.name)(_levels)


def element_type(name: str) -> ElementType:
    """The type called ``name``, of either registry.

    Raises
    ------
    RegistryError
        If there is none.
    """
    return QUANTISED[name] if name in QUANTISED else ELEMENT_TYPES[name]
