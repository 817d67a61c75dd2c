"""The `Filter` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, PlainUnit


@STRUCTURES.register("filter")
@dataclass(frozen=True)
class Filter(PlainUnit):
    """Whole filters (output channels, axis 0) are removed; a unit is one of them.

    References
    ----------
    Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017, section 3.1.
    """

    name: ClassVar[str] = "filter"

    def unit(self, shape: Shape) -> Shape:
        return (1, *shape[1:])
