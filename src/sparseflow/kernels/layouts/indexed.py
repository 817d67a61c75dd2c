"""The layout of a feature map that carries its index: channels last, with one bit for each channel of a pixel.

A map is three tensors. ``values`` (N, height * width * stored) are channels-last, channels rounded up to whole
vectors, the rest zero. ``bits`` (N, rows * cols * words) uint64 say which channels of a pixel are not zero, channel
c in bit c % 64 of word c // 64; around the map lies a halo of zero words, so that a kernel position outside the
map needs no branch. ``count`` (1,) int32 is the number of set bits. The format is `PixelBitmap` in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.core.formats.feature_map import PixelBitmap, carried

Array = npt.NDArray[Any]

WORD = 64
ALIGNED = 16
"""Channels of a pixel are stored in multiples of this, which the vectors of all targets divide."""


@dataclass(frozen=True)
class PixelLayout:
    """Where each value and each bit of a ``(channels, height, width)`` map lives.

    Attributes
    ----------
    channels, height, width : int
        The logical map.
    halo : (int, int, int, int)
        Rows or columns of zero words around the bits: top, left, bottom, right. The values have none.
    element : ElementType
        In which the values are stored.
    format : str
        The feature-map format that the map carries.

    Raises
    ------
    FormatError
        If no kernel on this layout reads the format.
    """

    channels: int
    height: int
    width: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    element: ElementType = FLOAT32
    format: str = PixelBitmap.name

    def __post_init__(self) -> None:
        carried(self.format, "pixels")

    @property
    def stored(self) -> int:
        """Channels stored for a pixel."""
        return -(-self.channels // ALIGNED) * ALIGNED

    @property
    def words(self) -> int:
        """Words of a pixel's bits."""
        return -(-self.channels // WORD)

    @property
    def rows(self) -> int:
        """Rows of words, halo included."""
        return self.height + self.halo[0] + self.halo[2]

    @property
    def cols(self) -> int:
        """Columns of words, halo included."""
        return self.width + self.halo[1] + self.halo[3]

    @property
    def size(self) -> int:
        """Values of one image."""
        return self.height * self.width * self.stored

    @property
    def bits_size(self) -> int:
        """Words of one image."""
        return self.rows * self.cols * self.words

    def tensors(self, batch: int) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and type of values, bits and count."""
        values = (batch, self.size), self.element.storage
        return values, ((batch, self.bits_size), "uint64"), ((1,), "int32")

    def pixel(self, row: Any, col: Any) -> Any:
        """Offset of the first value of pixel ``(row, col)``."""
        return (row * self.width + col) * self.stored

    def word(self, row: Any, col: Any) -> Any:
        """Offset of the first word of pixel ``(row, col)``, which may lie in the halo."""
        return ((row + self.halo[0]) * self.cols + col + self.halo[1]) * self.words

    def serves(self, wanted: PixelLayout) -> bool:
        """True when a consumer that asks for ``wanted`` may read this layout as it is."""
        return replace(self, halo=wanted.halo) == wanted and all(
            have >= need for have, need in zip(self.halo, wanted.halo, strict=True)
        )

    def with_halo(self, halo: tuple[int, int, int, int]) -> PixelLayout:
        """This layout with another halo."""
        return replace(self, halo=halo)

    def pack(self, x: Array) -> tuple[Array, Array, Array]:
        """Values, bits and count of ``x`` (N, C, H, W)."""
        found = carried(self.format, "pixels")().encode(self.element.rounded(x), self.channels)
        spare = ((0, 0), (0, 0), (0, 0))
        values = np.pad(found["data"], (*spare, (0, self.stored - self.channels)))
        octets = np.pad(found["bits"], (*spare, (0, self.words * WORD // 8 - found["bits"].shape[-1])))
        top, left, bottom, right = self.halo
        words = np.pad(octets.view("<u8"), ((0, 0), (top, bottom), (left, right), (0, 0)))
        return (
            self.element.encode(values.reshape(len(x), self.size)),
            np.ascontiguousarray(words.reshape(len(x), self.bits_size), np.uint64),
            np.array([np.count_nonzero(values)], np.int32),
        )

    def unpack(self, values: Array) -> Array:
        """The map (N, C, H, W) of ``values``, float32."""
        pixels = self.element.decode(values).reshape(len(values), self.height, self.width, self.stored)
        return np.ascontiguousarray(np.moveaxis(pixels[..., : self.channels], -1, 1))
