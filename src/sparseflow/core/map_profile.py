"""How sparse the feature maps of a network are on real inputs: what calibration records."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.errors import FormatError

Array = npt.NDArray[Any]

CELLS = 8
"""Side of the grid of cells in which the spatial structure is kept."""
TILE = 4
"""Side of the square of pixels that counts as one tile."""


@dataclass(frozen=True)
class MapDensity:
    """The non-zeros of one layer's input.

    Attributes
    ----------
    name : str
        The layer that reads the map.
    shape : tuple of int
        NCHW of a convolution's input, (…, features) of a linear layer's.
    images : int
        Images (rows of the batch) that were counted.
    mean, std, p10, p90 : float
        Of an image's density: the fraction of its elements that are not zero.
    pixels, tiles, wide_tiles, channels : float
        Mean fraction of the pixels, of the tiles of 4x4 and of 8x8 pixels and of the channels that hold any non-zero;
        1 - ``tiles`` can be skipped as whole tiles.
    spatial : tuple of tuple of float
        Mean density in at most 8 x 8 cells of the map, row by row.
    """

    name: str
    shape: tuple[int, ...]
    images: int
    mean: float
    std: float
    p10: float
    p90: float
    pixels: float
    tiles: float
    wide_tiles: float
    channels: float
    spatial: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class MapProfile:
    """The density of every layer's input, in the order of the layers after propagation.

    Attributes
    ----------
    layers : tuple of MapDensity
    calls : int
        Batches that were run.
    """

    layers: tuple[MapDensity, ...]
    calls: int

    @property
    def mean(self) -> float:
        """Mean density, each map weighted by its elements; the first layer's input, the data itself, left out."""
        rest = self.layers[1:] or self.layers
        sizes = [math.prod(layer.shape) for layer in rest]
        return sum(layer.mean * n for layer, n in zip(rest, sizes, strict=True)) / sum(sizes)

    def claimed(self, density: float) -> MapProfile:
        """This profile with another density of all maps but the data: for the worst case, not for a real plan."""
        layers = [replace(layer, mean=density) for layer in self.layers[1:]]
        return replace(self, layers=(*self.layers[:1], *layers))


class MapCounter:
    """Counts the non-zeros of one layer's inputs, batch after batch.

    Parameters
    ----------
    name : str
        The layer.
    shape : tuple of int
        Of each batch; the first axis counts images.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self._densities: list[float] = []
        self._shares: list[list[float]] = []
        self._spatial = np.zeros((1, 1))

    def add(self, batch: Array) -> None:
        """Counts one batch.

        Raises
        ------
        FormatError
            If its shape is another.
        """
        if batch.shape != self.shape:
            raise FormatError(f"{self.name}: a map of shape {batch.shape} was given; {self.shape} is counted")
        keep = as_map(batch) != 0
        self._densities += keep.mean(axis=(1, 2, 3)).tolist()
        pixels = keep.any(axis=1)
        parts = (pixels, _any_of(pixels, TILE), _any_of(pixels, 2 * TILE), keep.any(axis=(2, 3)))
        self._shares.append([float(part.mean()) for part in parts])
        self._spatial = self._spatial + _cells(keep.mean(axis=(0, 1)))

    def result(self) -> MapDensity:
        """The record of everything counted.

        Raises
        ------
        FormatError
            If nothing was counted.
        """
        if not self._densities:
            raise FormatError(f"{self.name}: no inputs were counted; calibrate with at least one")
        each = np.array(self._densities)
        p10, p90 = np.quantile(each, (0.1, 0.9))
        pixels, tiles, wide_tiles, channels = np.mean(self._shares, axis=0)
        spatial = self._spatial / len(self._shares)
        return MapDensity(
            self.name,
            self.shape,
            len(each),
            float(each.mean()),
            float(each.std()),
            float(p10),
            float(p90),
            float(pixels),
            float(tiles),
            float(wide_tiles),
            float(channels),
            tuple(tuple(float(v) for v in row) for row in spatial),
        )


def as_map(x: Array) -> Array:
    """``x`` as (N, C, H, W): a matrix's rows become pixels of one column, its features channels."""
    if x.ndim == 4:
        return x
    rows = x.reshape(len(x), -1, x.shape[-1])
    return np.moveaxis(rows, -1, 1)[..., None]


def _any_of(pixels: Array, side: int) -> Array:
    """Whether squares of ``side`` x ``side`` of (N, H, W) hold any."""
    rows, cols = (np.arange(0, n, side) for n in pixels.shape[1:])
    return np.asarray(np.logical_or.reduceat(np.logical_or.reduceat(pixels, rows, axis=1), cols, axis=2))


def _cells(density: Array) -> Array:
    """(H, W) averaged in at most `CELLS` x `CELLS` cells."""
    for axis in (0, 1):
        size = density.shape[axis]
        count = min(size, CELLS)
        edges = np.arange(count) * size // count
        lengths = np.diff([*edges, size])
        shape = (-1, 1) if axis == 0 else (1, -1)
        density = np.add.reduceat(density, edges, axis=axis) / lengths.reshape(shape)
    return density
