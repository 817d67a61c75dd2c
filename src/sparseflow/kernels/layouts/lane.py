"""The aligned-tap layout: a feature map cut into spatial blocks that are interleaved over the vector lanes.

Lane ``(by, bx)`` of a ``grid`` holds its own block of the map, with its own halo, so a convolution's tap ``(dy, dx)``
is a shift by *whole vectors*: every load is aligned and no column is wasted on the halo. A tensor in this layout is the
matrix ``(N, slots * plane * lanes)``; ``plane`` counts vectors of ``rows x cols`` positions. A slot is 32 bits: one
float32, or neighbouring channels in a narrower type, so that a vector has as many lanes whatever it holds.

References
----------
The layout generalises the "lanes = images" layout of batched direct convolution to one image.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.core.element_type import FLOAT32, SLOT_BITS, ElementType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LaneLayout:
    """Where each pixel of a ``(channels, height, width)`` map lives.

    Attributes
    ----------
    channels, height, width : int
        The logical map.
    grid : (int, int)
        Lanes along height and width; their product is the vector's length.
    block : (int, int)
        Rows and columns of the block that one lane holds; ``grid * block`` covers the map.
    halo : (int, int, int, int)
        Rows or columns kept from the neighbours: top, left, bottom, right.
    fill : float
        Value of the positions outside the map: 0, or -inf for a max pool over values of any sign.
    element : ElementType
        In which the map is stored.
    """

    channels: int
    height: int
    width: int
    grid: tuple[int, int]
    block: tuple[int, int]
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: float = 0.0
    element: ElementType = FLOAT32

    @property
    def lanes(self) -> int:
        """Elements in a vector."""
        return self.grid[0] * self.grid[1]

    @property
    def slots(self) -> int:
        """Planes: channels, as many together as share a slot."""
        return -(-self.channels // self.element.per_slot)

    @property
    def rows(self) -> int:
        """Rows of vectors in a plane, halo included."""
        return self.block[0] + self.halo[0] + self.halo[2]

    @property
    def cols(self) -> int:
        """Columns of vectors in a plane, halo included."""
        return self.block[1] + self.halo[1] + self.halo[3]

    @property
    def plane(self) -> int:
        """Vectors from one plane to the next.

        A stride of a multiple of 4,096 bytes would put all planes into the same set of the L1 cache, so such a
        plane is one vector longer.
        """
        vectors = self.rows * self.cols
        return vectors + 1 if vectors * self.lanes * (SLOT_BITS // 8) % 4096 == 0 else vectors

    @property
    def size(self) -> int:
        """Slots of one image."""
        return self.slots * self.plane * self.lanes

    @property
    def ragged(self) -> bool:
        """True when some lane positions lie outside the map."""
        return (self.grid[0] * self.block[0], self.grid[1] * self.block[1]) != (self.height, self.width)

    def position(self, row: int, col: int) -> int:
        """Vector offset in a plane of block position ``(row, col)``, which may lie in the halo."""
        return (row + self.halo[0]) * self.cols + col + self.halo[1]

    def same_blocks(self, other: LaneLayout) -> bool:
        """True when both hold the same pixels in the same lanes and type, whatever their halos and channels."""
        mine = (self.height, self.width, self.grid, self.block, self.element)
        return mine == (other.height, other.width, other.grid, other.block, other.element)

    def serves(self, wanted: LaneLayout) -> bool:
        """True when a consumer that asks for ``wanted`` may read this layout as it is."""
        if not self.same_blocks(wanted):
            return False
        if any(have < need for have, need in zip(self.halo, wanted.halo, strict=True)):
            return False
        reads_outside = any(wanted.halo) or wanted.ragged
        return not reads_outside or self.fill == wanted.fill

    def can_fill_halo(self) -> bool:
        """True when each halo comes from the direct neighbour lanes, so that a producer can fill it."""
        top, left, bottom, right = self.halo
        covers = self.grid[0] * self.block[0] >= self.height and self.grid[1] * self.block[1] >= self.width
        return covers and max(top, bottom) <= self.block[0] and max(left, right) <= self.block[1]

    def with_halo(self, halo: tuple[int, int, int, int]) -> LaneLayout:
        """This layout with another halo."""
        return replace(self, halo=halo)

    def read_by(
        self,
        shape: tuple[int, int, int],
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int] = (1, 1),
    ) -> LaneLayout:
        """The layout that a window reads of a (channels, height, width) map when it writes this one."""
        (sh, sw), (kh, kw), (dh, dw) = stride, kernel_size, dilation
        top, left = padding[0], padding[1]
        bottom = max(0, dh * (kh - 1) - top - (sh - 1))
        right = max(0, dw * (kw - 1) - left - (sw - 1))
        block = (self.block[0] * sh, self.block[1] * sw)
        return LaneLayout(*shape, self.grid, block, (top, left, bottom, right), element=self.element)

    def coordinates(self) -> tuple[Array, Array]:
        """Height and width coordinates, each int (plane, lanes), of every element of a plane; -1 outside the map."""
        by, bx = np.divmod(np.arange(self.lanes), self.grid[1])
        row, col = np.divmod(np.arange(self.rows * self.cols), self.cols)
        h = by[None, :] * self.block[0] + row[:, None] - self.halo[0]
        w = bx[None, :] * self.block[1] + col[:, None] - self.halo[1]
        inside = (h >= 0) & (h < self.height) & (w >= 0) & (w < self.width)
        pad = ((0, self.plane - self.rows * self.cols), (0, 0))
        outside = {"mode": "constant", "constant_values": -1}
        h = np.pad(np.where(inside, h, -1), pad, **outside)  # type: ignore[call-overload]
        w = np.pad(np.where(inside, w, -1), pad, **outside)  # type: ignore[call-overload]
        return h, w

    def pack(self, x: Array) -> Array:
        """``x`` (N, C, H, W) in this layout, (N, size), as `element` stores it."""
        h, w = self.coordinates()
        values = np.where(h >= 0, x[:, :, h, w], np.float32(self.fill))
        return self.element.joined(values, 1).reshape(x.shape[0], self.size)

    def unpack(self, y: Array) -> Array:
        """The inverse of `pack`: ``y`` (N, size) as float32 (N, C, H, W)."""
        interior = replace(self, halo=(0, 0, 0, 0))
        h, w = interior.coordinates()
        row, col = np.divmod(np.arange(self.block[0] * self.block[1]), self.block[1])
        vectors = (row + self.halo[0]) * self.cols + col + self.halo[1]
        planes = y.reshape(len(y), self.slots, self.plane, self.lanes)[:, :, vectors]
        planes = self.element.parted(planes, 1, self.channels)
        h, w = h[: len(vectors)], w[: len(vectors)]
        out = np.zeros((y.shape[0], self.channels, self.height, self.width), np.float32)
        out[:, :, h[h >= 0], w[h >= 0]] = planes[:, :, h >= 0]
        return out


@functools.cache
def best_grid(height: int, width: int, lanes: int) -> tuple[int, int]:
    """The lane grid that wastes the fewest vectors on a map; the squarest of those within 2 %."""
    splits = [(g, lanes // g) for g in range(1, lanes + 1) if lanes % g == 0]

    def vectors(grid: tuple[int, int]) -> int:
        return math.ceil(height / grid[0]) * math.ceil(width / grid[1])

    fewest = min(vectors(g) for g in splits)
    near = [g for g in splits if vectors(g) <= 1.02 * fewest]
    return min(near, key=lambda g: (abs(math.log2(g[0] / g[1])), g[0]))


def canonical(
    channels: int, height: int, width: int, lanes: int, element: ElementType = FLOAT32
) -> LaneLayout:
    """The layout a layer writes unless its consumers ask for a halo."""
    grid = best_grid(height, width, lanes)
    block = (math.ceil(height / grid[0]), math.ceil(width / grid[1]))
    return LaneLayout(channels, height, width, grid, block, element=element)
