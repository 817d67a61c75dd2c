"""What `sparseflow inspect --data` finds of a network's feature maps; importable without torch and without TVM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from sparseflow.core.element_type import FLOAT32
from sparseflow.core.formats import FeatureMapIndex, PixelBitmap
from sparseflow.core.map_profile import MapDensity

VARIANTS = ("dense", "weights", "maps", "both")
"""Which zeros a kernel leaves out: none, those of the weights, those of the maps, both."""


@dataclass(frozen=True)
class MapLayer:
    """One layer with weights and the map that it reads.

    Attributes
    ----------
    name : str
    weight_shape : tuple of int
        OIHW, or (out, in).
    weight_density : float
        Kept fraction of the weights.
    macs_dense : int
        Multiply-accumulates of one call without any zero left out.
    map : MapDensity
        Of its input.
    times_s : dict
        For some of `VARIANTS` the seconds of one call by the fastest kernel that leaves out these zeros and no others,
        measured alone; empty when nothing was measured.
    """

    name: str
    weight_shape: tuple[int, ...]
    weight_density: float
    macs_dense: int
    map: MapDensity
    times_s: dict[str, float] = field(default_factory=dict)

    @property
    def map_bytes(self) -> int:
        """The map as float32."""
        return self._index.value_bytes

    @property
    def index_bytes(self) -> int:
        """A bit for each element."""
        return self._index.index_bytes

    @property
    def _index(self) -> FeatureMapIndex:
        shape = self.map.shape
        if len(shape) != 4:  # a row of features is a pixel
            shape = (math.prod(shape[:-1]), shape[-1], 1, 1)
        return FeatureMapIndex(PixelBitmap(), shape, FLOAT32.name, shape[1])

    def macs(self, variant: str) -> float:
        """Multiply-accumulates left; for both, zeros of weights and maps are taken to fall independently."""
        weights = self.weight_density if variant in ("weights", "both") else 1.0
        maps = self.map.mean if variant in ("maps", "both") else 1.0
        return self.macs_dense * weights * maps


@dataclass(frozen=True)
class MapResults:
    """All layers of a network, in order.

    Attributes
    ----------
    model, data : str
        What the command was given.
    images : int
        Samples over which densities were counted.
    layers : tuple of MapLayer
        The first reads the data themselves.
    threads : int
        Of the measured times.
    machine : str
        Where they were measured; empty if nothing was.
    """

    model: str
    data: str
    images: int
    layers: tuple[MapLayer, ...]
    threads: int = 1
    machine: str = ""
    kind: Literal["maps"] = "maps"

    @property
    def inner(self) -> tuple[MapLayer, ...]:
        """The layers that read computed maps."""
        return self.layers[1:] or self.layers

    @property
    def mean_density(self) -> float:
        """Of all computed maps together: each counts by its elements."""
        size = sum(layer.map_bytes for layer in self.inner)
        return sum(layer.map.mean * layer.map_bytes for layer in self.inner) / size

    def macs(self, variant: str) -> float:
        """Multiply-accumulates left in the whole network; the first layer's input counts as dense."""
        first, *rest = self.layers
        alone = "weights" if variant in ("weights", "both") else "dense"
        return first.macs(alone) + sum(layer.macs(variant) for layer in rest)
