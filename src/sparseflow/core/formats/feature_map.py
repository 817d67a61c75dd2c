"""Indices of feature maps: types that the compiler puts on an edge, filled at run time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, ceil_div, smallest_uint
from sparseflow.core.formats.base import ArraySpec, check_arrays
from sparseflow.errors import FormatError
from sparseflow.registry import Registry


class FeatureMapFormat(ABC):
    """A way to index the non-zeros of a feature map, pixel by pixel over its channels.

    ``encode`` and ``decode`` are the reference for the code that producers and consumers are compiled to.

    Attributes
    ----------
    name : str
    layout : str
        The layout (`KernelTemplate.layout`) of the kernels that read and write it; empty if none do.
    """

    name: ClassVar[str]
    layout: ClassVar[str] = ""

    @abstractmethod
    def array_specs(self, shape: Shape, dtype: np.dtype[Any], capacity: int) -> tuple[ArraySpec, ...]:
        """The arrays for a map of ``shape`` (N, C, H, W) whose pixels hold at most ``capacity`` non-zeros."""

    @abstractmethod
    def encode(self, feature_map: Array, capacity: int) -> dict[str, Array]:
        """The arrays of a map (N, C, H, W)."""

    @abstractmethod
    def decode(self, arrays: Mapping[str, Array], shape: Shape) -> Array:
        """The dense map (N, C, H, W)."""


FEATURE_MAP_FORMATS: Registry[type[FeatureMapFormat]] = Registry("feature-map format")
"""All feature-map formats by name."""


def carried(name: str, layout: str) -> type[FeatureMapFormat]:
    """The feature-map format ``name``, which a map between kernels of ``layout`` is to carry.

    Raises
    ------
    FormatError
        If kernels of that layout do not read and write it.
    RegistryError
        If there is no such format.
    """
    found = FEATURE_MAP_FORMATS[name]
    if found.layout != layout:
        known = ", ".join(n for n, f in FEATURE_MAP_FORMATS.items() if f.layout == layout)
        raise FormatError(f"{name}: no kernel on {layout} reads or writes such maps; allowed: {known}")
    return found


@FEATURE_MAP_FORMATS.register("pixel-bitmap")
@dataclass(frozen=True)
class PixelBitmap(FeatureMapFormat):
    """One bit per pixel and block of ``block`` channels beside the channels-last values, which stay in place.

    arrays: ``bits`` uint8 (N, H, W, ⌈⌈C/block⌉/8⌉), channel block 0 in the lowest bit of byte 0, so that a
    little-endian word counts trailing zeros to the first; ``data`` (N, H, W, C).
    The index is 1/(block·v) of the tensor, bytes filled up.
    """

    block: int = 1

    name: ClassVar[str] = "pixel-bitmap"
    layout: ClassVar[str] = "pixels"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise FormatError(
                f"PixelBitmap: blocks of {self.block} channels; a positive number is needed, as in 1"
            )

    def array_specs(self, shape: Shape, dtype: np.dtype[Any], capacity: int) -> tuple[ArraySpec, ...]:
        n, c, h, w = shape
        return (
            ArraySpec("bits", "uint8", (n, h, w, ceil_div(ceil_div(c, self.block), 8)), "index"),
            ArraySpec("data", str(dtype), (n, h, w, c), "value"),
        )

    def encode(self, feature_map: Array, capacity: int) -> dict[str, Array]:
        data = np.ascontiguousarray(np.moveaxis(feature_map, 1, -1))
        starts = np.arange(0, data.shape[-1], self.block)
        any_block = np.logical_or.reduceat(data != 0, starts, axis=-1)
        return {"bits": np.packbits(any_block, axis=-1, bitorder="little"), "data": data}

    def decode(self, arrays: Mapping[str, Array], shape: Shape) -> Array:
        blocks = ceil_div(shape[1], self.block)
        bits = np.unpackbits(arrays["bits"], axis=-1, count=blocks, bitorder="little").astype(np.bool_)
        present = np.repeat(bits, self.block, axis=-1)[..., : shape[1]]
        values = np.where(present, arrays["data"], np.zeros((), arrays["data"].dtype))
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))


@FEATURE_MAP_FORMATS.register("compacted-pixels")
@dataclass(frozen=True)
class CompactedPixels(FeatureMapFormat):
    """Each pixel's non-zeros moved to the front, with their channels and their number.

    arrays: ``counts`` (N, H, W) and ``indices`` (N, H, W, capacity) of the smallest unsigned types, ``data``
    (N, H, W, capacity); slots from ``counts`` on are zero. It serves accounting only: no kernel reads it.
    """

    name: ClassVar[str] = "compacted-pixels"

    def array_specs(self, shape: Shape, dtype: np.dtype[Any], capacity: int) -> tuple[ArraySpec, ...]:
        n, c, h, w = shape
        return (
            ArraySpec("counts", smallest_uint(c), (n, h, w), "index"),
            ArraySpec("indices", smallest_uint(c - 1), (n, h, w, capacity), "index"),
            ArraySpec("data", str(dtype), (n, h, w, capacity), "value"),
        )

    def encode(self, feature_map: Array, capacity: int) -> dict[str, Array]:
        values = np.moveaxis(feature_map, 1, -1)
        channels = values.shape[-1]
        pixels = values.reshape(-1, channels)
        keep = pixels != 0
        counts = np.count_nonzero(keep, axis=1)
        if counts.max() > capacity:
            raise FormatError(
                f"{self.name}: a pixel of a map of shape {feature_map.shape} has {counts.max()} non-zeros; "
                "its "
                f"capacity is {capacity}; calibrate with more inputs or use the number of channels"
            )
        rows, columns = np.nonzero(keep)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        indices = np.zeros((len(pixels), capacity), smallest_uint(channels - 1))
        data = np.zeros((len(pixels), capacity), feature_map.dtype)
        indices[rows, slots] = columns
        data[rows, slots] = pixels[keep]
        grid = values.shape[:-1]
        return {
            "counts": counts.reshape(grid).astype(smallest_uint(channels)),
            "indices": indices.reshape(*grid, capacity),
            "data": data.reshape(*grid, capacity),
        }

    def decode(self, arrays: Mapping[str, Array], shape: Shape) -> Array:
        n, c, h, w = shape
        data = arrays["data"]
        filled = np.arange(data.shape[-1]) < arrays["counts"][..., None]
        if arrays["counts"].max() > data.shape[-1] or (filled & (arrays["indices"] >= c)).any():
            raise FormatError(
                f"{self.name} of shape {shape}: 'counts' exceeds the capacity {data.shape[-1]} or 'indices' "
                "the "
                f"{c} channels; write the map again"
            )
        where = np.nonzero(filled)
        values = np.zeros((n, h, w, c), data.dtype)
        values[(*where[:3], arrays["indices"][filled])] = data[filled]
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))


@dataclass(frozen=True)
class FeatureMapIndex:
    """The type of an indexed feature map: known when compiling, filled when running.

    Attributes
    ----------
    format : FeatureMapFormat
    shape : tuple of int
        (N, C, H, W).
    dtype : str
        NumPy name of the values' type.
    capacity : int
        Non-zeros that a pixel can hold, at most C.

    Raises
    ------
    FormatError
        For a shape or capacity that cannot be.
    """

    format: FeatureMapFormat
    shape: Shape
    dtype: str
    capacity: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise FormatError(f"{self.format.name}: a map of shape {self.shape}; (N, C, H, W) > 0 is needed")
        if not 1 <= self.capacity <= self.shape[1]:
            raise FormatError(
                f"{self.format.name}: capacity {self.capacity} for {self.shape[1]} channels; give 1 to the "
                "number "
                "of channels"
            )

    @property
    def array_specs(self) -> tuple[ArraySpec, ...]:
        """The arrays that hold the map at run time."""
        return self.format.array_specs(self.shape, np.dtype(self.dtype), self.capacity)

    @property
    def value_bytes(self) -> int:
        """Bytes of the value array."""
        return self._bytes("value")

    @property
    def index_bytes(self) -> int:
        """Bytes of all index arrays."""
        return self._bytes("index")

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        return self.value_bytes + self.index_bytes

    def encode(self, feature_map: Array) -> dict[str, Array]:
        """The arrays that a producer must write for ``feature_map``, (N, C, H, W).

        Raises
        ------
        FormatError
            If its shape or type is another, or a pixel has more non-zeros than the capacity.
        """
        if feature_map.shape != self.shape or str(feature_map.dtype) != self.dtype:
            raise FormatError(
                f"{self.format.name}: a map {feature_map.dtype}{feature_map.shape} was given; the index is "
                "for "
                f"{self.dtype}{self.shape}; make an index of that type"
            )
        return self.format.encode(feature_map, self.capacity)

    def decode(self, arrays: Mapping[str, Array]) -> Array:
        """The dense map (N, C, H, W) that ``arrays`` hold.

        Raises
        ------
        FormatError
            If the arrays' types or shapes are wrong.
        """
        check_arrays(f"{self.format.name} of shape {self.shape}", self.array_specs, arrays)
        return self.format.decode(arrays, self.shape)

    def _bytes(self, role: str) -> int:
        total = 0
        for spec in self.array_specs:
            if spec.role == role:
                extents = [size for size in spec.shape if isinstance(size, int)]
                total += int(np.prod(extents)) * np.dtype(spec.dtype).itemsize
        return total
