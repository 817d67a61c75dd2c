"""The `Channel` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, PlainUnit


@STRUCTURES.register("channel")
@dataclass(frozen=True)
class Channel(PlainUnit):
    """Whole input channels (axis 1) are removed; a unit is one of them across all filters.

    References
    ----------
    He et al., *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017, section 3.
    """

    name: ClassVar[str] = "channel"

    def unit(self, shape: Shape) -> Shape:
        return (shape[0], 1, *shape[2:])
