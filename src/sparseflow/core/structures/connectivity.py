"""The `Connectivity` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, UnitStructure
from sparseflow.errors import StructureError


@STRUCTURES.register("connectivity")
@dataclass(frozen=True)
class Connectivity(UnitStructure):
    """Whole kernels are removed: all positions of one (filter, input channel) pair are a unit.

    Attributes
    ----------
    filters, channels : int
        How many neighbours are removed together.

    References
    ----------
    Niu et al., *PatDNN*, ASPLOS 2020, section 3 ("connectivity pruning").
    """

    filters: int = 1
    channels: int = 1

    name: ClassVar[str] = "connectivity"
    grammar: ClassVar[str] = "connectivity or connectivity:FILTERSxCHANNELS"
    example: ClassVar[str] = "connectivity"

    def __post_init__(self) -> None:
        self._check_positive(filters=self.filters, channels=self.channels)

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if len(shape) < 3:
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} has no kernels, only convolutions have; "
                "use unstructured or block for a linear layer"
            )

    def unit(self, shape: Shape) -> Shape:
        return (self.filters, self.channels, *shape[2:])

    def __str__(self) -> str:
        alone = (self.filters, self.channels) == (1, 1)
        return "connectivity" if alone else f"connectivity:{self.filters}x{self.channels}"

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        return cls(*cls._sizes(arguments, arguments, "x", 2)) if arguments else cls()
