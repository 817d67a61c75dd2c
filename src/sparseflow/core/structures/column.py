"""The `Column` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, PlainUnit


@STRUCTURES.register("column")
@dataclass(frozen=True)
class Column(PlainUnit):
    """Columns are removed: one (channel, position) across all filters is a unit.

    References
    ----------
    Wen et al., *Learning Structured Sparsity in Deep Neural Networks*, NeurIPS 2016, section 3.2
    ("shape-wise").
    """

    name: ClassVar[str] = "column"

    def unit(self, shape: Shape) -> Shape:
        return (shape[0],) + (1,) * (len(shape) - 1)
