"""The `NM` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparseflow.core.arrays import Array, Keep, Shape, top_k
from sparseflow.core.structures.base import STRUCTURES, GroupStructure
from sparseflow.errors import StructureError


@STRUCTURES.register("nm")
@dataclass(frozen=True)
class NM(GroupStructure):
    """``n`` of every ``m`` consecutive weights along ``axis`` are kept (axis 1: input channels; 0: filters).

    The density is n/m exactly, and ``m`` must divide the axis.

    References
    ----------
    Mishra et al., *Accelerating Sparse Deep Neural Networks*, 2021, section 3 (2:4);
    Zhou et al., *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*, ICLR 2021.
    """

    n: int
    m: int
    axis: int = 1

    name: ClassVar[str] = "nm"
    grammar: ClassVar[str] = "nm:N:M or nm:N:M:AXIS"
    example: ClassVar[str] = "nm:2:4"

    def __post_init__(self) -> None:
        self._check_positive(n=self.n, m=self.m)
        if self.n > self.m or self.axis not in (0, 1):
            raise StructureError(
                f"NM: {self.n}:{self.m} along axis {self.axis}; N must not exceed M and the axis is 0 (filters) or 1 "
                "(input channels), as in nm:2:4"
            )

    @property
    def fixed_density(self) -> float:
        return self.n / self.m

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if shape[self.axis] % self.m:
            raise StructureError(
                f"{self}: axis {self.axis} of a weight of shape {tuple(shape)} has {shape[self.axis]} elements, which "
                f"{self.m} does not divide; leave this layer dense or choose another M"
            )

    def group(self) -> Shape:
        return (self.m, 1) if self.axis == 0 else (1, self.m)

    def select_batch(self, scores: Array, density: float) -> Keep:
        moved = np.moveaxis(scores, self.axis + 1, -1)
        keep = top_k(moved.reshape(-1, self.m), self.n).reshape(moved.shape)
        return np.ascontiguousarray(np.moveaxis(keep, -1, self.axis + 1))

    def cover_batch(self, keep: Keep) -> Keep | None:
        moved = np.moveaxis(keep, self.axis + 1, -1)
        groups = moved.reshape(-1, self.m)
        counts = np.count_nonzero(groups, axis=1)
        if counts.max() > self.n:
            return None
        if counts.min() == self.n:
            return keep
        filled = top_k(groups.astype(np.uint8), self.n).reshape(moved.shape)
        return np.ascontiguousarray(np.moveaxis(filled, -1, self.axis + 1))

    def __str__(self) -> str:
        return f"nm:{self.n}:{self.m}" + ("" if self.axis == 1 else f":{self.axis}")

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        return cls(*cls._sizes(arguments, arguments, ":", 2, 3))
