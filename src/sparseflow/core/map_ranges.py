"""The ranges of a network's feature maps where they are stored in few bits: what quantisation leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sparseflow.core.codec import encode, loads
from sparseflow.core.files import write_json
from sparseflow.errors import FormatError

SUFFIX = ".weight"


@dataclass(frozen=True)
class MapRange:
    """The map that a layer reads.

    Its ``2^bits`` levels are equally spaced from ``low`` to ``high``, and zero is one of them.

    Parameters
    ----------
    name : str
        Of the layer's weight, such as ``features.0.weight``.
    low, high : float
        ``low <= 0 <= high``, and not equal.
    bits : int
        Of one element of the map.
    weight_bits : int
        Of a code of the layer's weights, which lie on levels of a step for each filter.

    Raises
    ------
    FormatError
        If the range does not hold zero, or bits are none of 2 to 8.
    """

    name: str
    low: float
    high: float
    bits: int = 8
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high - self.low) and self.low <= 0 <= self.high and self.low < self.high):
            raise FormatError(
                f"{self.name}: found the range {self.low} to {self.high}; finite ones that hold zero are allowed"
            )
        if not (2 <= self.bits <= 8 and 2 <= self.weight_bits <= 8):
            raise FormatError(
                f"{self.name}: found {self.bits} bits, {self.weight_bits} of weights; 2 to 8 are allowed"
            )

    @property
    def layer(self) -> str:
        """The module's name."""
        return self.name.removesuffix(SUFFIX)

    @property
    def scale(self) -> float:
        """Distance of two levels."""
        return (self.high - self.low) / ((1 << self.bits) - 1)

    @property
    def zero_point(self) -> int:
        """The code of zero, in 0 to ``2^bits - 1``."""
        return round(-self.low / self.scale)


@dataclass(frozen=True)
class MapRanges:
    """All layers of a network that read a quantised map, in their order; what ``quantisation.json`` holds.

    Raises
    ------
    FormatError
        If a layer is named twice.
    """

    layers: tuple[MapRange, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FormatError(f"{twice}: found twice; one range a layer is allowed")

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises
        ------
        SparseflowError
            If it cannot be written.
        """
        write_json(path, encode(self))

    @classmethod
    def load(cls, path: Path) -> MapRanges:
        """What `save` wrote.

        Raises
        ------
        FormatError
            If it cannot be read, or holds something else.
        """
        try:
            return loads(cls, path.read_text(encoding="utf-8"))
        except (OSError, FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"{path}: no map ranges ({error}); quantise the network again") from error
