"""The `BlockPunched` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseflow.core.arrays import Shape
from sparseflow.core.structures.base import STRUCTURES
from sparseflow.core.structures.block import Block
from sparseflow.errors import StructureError


@STRUCTURES.register("block-punched")
@dataclass(frozen=True)
class BlockPunched(Block):
    """Blocks of ``out`` filters × ``in_`` channels with the same kernel positions punched out of all kernels.

    A unit is one kernel position of one block, so the masks are those of `Block` on a k×k convolution; the
    name is kept for convolutions with more than one position and blocks that span several channels, where
    what is removed is seen as a hole through the block. The paper's block is 8 filters × 4 channels.

    References
    ----------
    Cai et al., *YOLObile*, AAAI 2021, section "Block-Punched Pruning".
    """

    out: int = 8
    in_: int = 4

    name: ClassVar[str] = "block-punched"
    grammar: ClassVar[str] = "block-punched:OUTxIN"
    example: ClassVar[str] = "block-punched:8x4"

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if len(shape) < 3 or max(shape[2:]) == 1:
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} has one kernel position and nothing to punch; "
                f"use block:{self.out}x{self.in_}, which is the same there"
            )
