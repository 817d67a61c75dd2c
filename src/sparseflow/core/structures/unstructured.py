"""The `Unstructured` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, PlainUnit


@STRUCTURES.register("unstructured")
@dataclass(frozen=True)
class Unstructured(PlainUnit):
    """Any weight may be zero; a unit is one weight.

    References
    ----------
    Han et al., *Learning both Weights and Connections for Efficient Neural Networks*, NeurIPS 2015, section
    3.
    """

    name: ClassVar[str] = "unstructured"

    def unit(self, shape: Shape) -> Shape:
        return (1,) * len(shape)
