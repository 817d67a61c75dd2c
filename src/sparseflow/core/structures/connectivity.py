"""The `Connectivity` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, PlainUnit
from sparseflow.errors import StructureError


@STRUCTURES.register("connectivity")
@dataclass(frozen=True)
class Connectivity(PlainUnit):
    """Whole kernels are removed: all positions of one (filter, input channel) pair are a unit.

    References
    ----------
    Niu et al., *PatDNN*, ASPLOS 2020, section 3 ("connectivity pruning").
    """

    name: ClassVar[str] = "connectivity"

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if len(shape) < 3:
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} has no kernels, only convolutions have; "
                "use unstructured or block for a linear layer"
            )

    def unit(self, shape: Shape) -> Shape:
        return (1, 1, *shape[2:])
