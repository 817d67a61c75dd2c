"""The `Block` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES, UnitStructure


@STRUCTURES.register("block")
@dataclass(frozen=True)
class Block(UnitStructure):
    """Blocks of ``out`` filters × ``in_`` input channels at one kernel position are kept or removed together.

    For a linear layer: ``out`` rows × ``in_`` columns. Sizes that the block does not divide leave ragged last
    blocks, which count as units like the others.

    References
    ----------
    Narang et al., *Block-Sparse Recurrent Neural Networks*, 2017, section 3.1.
    """

    out: int
    in_: int

    name: ClassVar[str] = "block"
    grammar: ClassVar[str] = "block:OUTxIN"
    example: ClassVar[str] = "block:4x1"

    def __post_init__(self) -> None:
        self._check_positive(out=self.out, in_=self.in_)

    def unit(self, shape: Shape) -> Shape:
        return (min(self.out, shape[0]), min(self.in_, shape[1])) + (1,) * (len(shape) - 2)

    def __str__(self) -> str:
        return f"{self.name}:{self.out}x{self.in_}"

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        return cls(*cls._sizes(arguments, arguments, "x", 2))
