"""The `DenseBlocks` structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparseflow.core.arrays import Array, Keep, Shape
from sparseflow.core.structures.base import STRUCTURES, Structure
from sparseflow.core.structures.parse import parse_structure
from sparseflow.errors import StructureError


@STRUCTURES.register("dense-blocks")
@dataclass(frozen=True)
class DenseBlocks(Structure):
    """A linear layer split into blocks of ``rows`` × ``cols`` weights, each pruned apart as ``inner``.

    Each block keeps the same density (the count that ``inner`` states, block by block); the last blocks are
    smaller where the sizes do not divide. Inner `Filter` and `Column` remove a block's rows and columns.

    References
    ----------
    Dong et al., *RTMobile*, DAC 2020, section 3 (block-based structured pruning); Cai et al., *YOLObile*,
    AAAI 2021 (the same for fully connected layers).
    """

    rows: int
    cols: int
    inner: Structure

    name: ClassVar[str] = "dense-blocks"
    grammar: ClassVar[str] = "dense-blocks:ROWSxCOLS:INNER"
    example: ClassVar[str] = "dense-blocks:16x32:column"

    def __post_init__(self) -> None:
        self._check_positive(rows=self.rows, cols=self.cols)
        if not isinstance(self.inner, Structure) or isinstance(self.inner, DenseBlocks):
            raise StructureError(
                f"DenseBlocks: the inner structure is {self.inner}; give any structure other than dense-blocks, as in "
                f"{self.example}"
            )

    @property
    def brief(self) -> str:
        return f"{self.name}:{self.rows}x{self.cols}:{self.inner.brief}"

    @property
    def fixed_density(self) -> float | None:
        return self.inner.fixed_density

    @property
    def max_density(self) -> float:
        return self.inner.max_density

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if len(shape) != 2:
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} is not a linear layer's (out, in); "
                "use block or block-punched for a convolution"
            )
        for _, block in self._regions(shape):
            self.inner.check(block)

    def select_batch(self, scores: Array, density: float) -> Keep:
        keep = np.empty(scores.shape, dtype=np.bool_)
        for region, block in self._regions(scores.shape[1:]):
            blocks = _split(scores[region], block)
            keep[region] = _join(self.inner.select_batch(blocks, density), scores[region].shape)
        return keep

    def cover_batch(self, keep: Keep) -> Keep | None:
        covered = np.empty(keep.shape, dtype=np.bool_)
        for region, block in self._regions(keep.shape[1:]):
            blocks = self.inner.cover_batch(_split(keep[region], block))
            if blocks is None:
                return None
            covered[region] = _join(blocks, keep[region].shape)
        return covered

    def _regions(self, shape: Shape) -> list[tuple[tuple[slice, slice, slice], tuple[int, int]]]:
        """The at most four rectangles whose blocks have equal shapes, each with that shape."""

        def spans(size: int, block: int) -> list[tuple[slice, int]]:
            whole = size - size % block
            found = [(slice(0, whole), block), (slice(whole, size), size - whole)]
            return [(span, extent) for span, extent in found if span.start < span.stop]

        return [
            ((slice(None), rows, cols), (r, c))
            for rows, r in spans(shape[0], self.rows)
            for cols, c in spans(shape[1], self.cols)
        ]

    def __str__(self) -> str:
        return f"{self.name}:{self.rows}x{self.cols}:{self.inner}"

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        sizes, colon, inner = arguments.partition(":")
        rows, cols = cls._sizes(arguments, sizes if colon else "", "x", 2)
        return cls(rows, cols, parse_structure(inner))


def _split(x: Array, block: tuple[int, int]) -> Array:
    """(batch, rows, cols) → (batch·blocks, r, c), which divide it."""
    (batch, rows, cols), (r, c) = x.shape, block
    return x.reshape(batch, rows // r, r, cols // c, c).swapaxes(2, 3).reshape(-1, r, c)


def _join(blocks: Array, shape: Shape) -> Array:
    """The inverse of `_split`."""
    (batch, rows, cols), (r, c) = shape, blocks.shape[1:]
    return blocks.reshape(batch, rows // r, cols // c, r, c).swapaxes(2, 3).reshape(shape)
