"""Between which numbers the feature maps of a network lie on real inputs: what quantised maps are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.errors import FormatError
from sparseflow.registry import Registry

Array = npt.NDArray[Any]

BINS = 4096
"""Bins of the counted values; they grow by factors of two as larger ones come."""
TAIL = 1e-3
"""Share of the values that ``percentile`` leaves out on each side."""
CUTS = np.linspace(1.0, 0.2, 81)
"""Parts of the whole range that ``mse`` tries."""


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``."""

    low: float
    high: float

    def within(self, low: float, high: float) -> Range:
        """The part of it between two numbers."""
        return Range(min(max(self.low, low), high), max(min(self.high, high), low))


@dataclass(frozen=True)
class LayerRanges:
    """The ranges around one layer; None where one is not known.

    Attributes
    ----------
    name : str
        Of its weight in the model.
    source : Range, optional
        Of the map that it reads.
    result : Range, optional
        Of what it writes, after bias, residual and activation.
    residual : Range, optional
        Of the map that it adds.
    error : float
        How far its sums move when its map and its weights are put on levels: root mean square, relative to the sums'.
    """

    name: str
    source: Range | None
    result: Range | None
    residual: Range | None = None
    error: float = 0.0


@dataclass(frozen=True)
class CalibratedRanges:
    """The ranges of a network's maps, in the order of its layers after propagation.

    Attributes
    ----------
    layers : tuple of LayerRanges
    method : str
        One of `RANGES`, which drew them.
    calls : int
        Batches that were run.
    """

    layers: tuple[LayerRanges, ...]
    method: str
    calls: int


class RangeCounter:
    """Counts the values of one map, batch after batch."""

    def __init__(self) -> None:
        self.low, self.high, self.reach = np.inf, -np.inf, 0.0
        self.counts = np.zeros(BINS, np.int64)
        self.calls = 0

    def add(self, batch: Array) -> None:
        """Counts one batch.

        Raises
        ------
        FormatError
            If a value is not finite.
        """
        low, high = float(batch.min(initial=np.inf)), float(batch.max(initial=-np.inf))
        if not np.isfinite(high - low) and batch.size:
            raise FormatError("a map holds a value that is not finite; allowed: finite numbers")
        self.calls += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.reach == 0.0 < largest:
            self.reach = largest
        while self.reach < largest:
            quarter = np.zeros(BINS // 4, np.int64)
            self.counts = np.concatenate([quarter, self.counts.reshape(-1, 2).sum(axis=1), quarter])
            self.reach *= 2.0
        if self.reach > 0.0:
            self.counts += np.histogram(batch, BINS, (-self.reach, self.reach))[0]

    def range(self, method: str, bits: int = 8) -> Range:
        """What ``method`` of `RANGES` draws from everything counted, for levels of ``bits``; it holds 0.

        Raises
        ------
        FormatError
            If nothing was counted.
        """
        if self.low > self.high:
            raise FormatError("no values were counted; calibrate with at least one input")
        found = RANGES[method](self, bits)
        return Range(min(found.low, 0.0), max(found.high, 0.0))

    @property
    def centres(self) -> Array:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2.0 * self.reach / BINS) - self.reach)


RANGES: Registry[Callable[[RangeCounter, int], Range]] = Registry("map range")
"""How a range is drawn from the counted values, for levels of so many bits."""


@RANGES.register("min-max")
def min_max(counter: RangeCounter, bits: int) -> Range:
    """All that was seen."""
    return Range(counter.low, counter.high)


@RANGES.register("percentile")
def percentile(counter: RangeCounter, bits: int) -> Range:
    """All but a share of `TAIL` on each side, to a bin."""
    share = np.cumsum(counter.counts) / max(1, counter.counts.sum())
    low, high = np.searchsorted(share, [TAIL, 1.0 - TAIL])
    ends = counter.centres[[low, min(int(high), BINS - 1)]]
    return min_max(counter, bits).within(float(ends[0]), float(ends[1]))


@RANGES.register("mse")
def mse(counter: RangeCounter, bits: int) -> Range:
    """The part of the range with the least mean square of rounding and cutting off, each side cut alike."""
    whole, centres = counter.range("min-max"), counter.centres

    def error(cut: float) -> float:
        low, high = cut * whole.low, cut * whole.high
        step = (high - low) / (2**bits - 1)
        beyond = centres - np.clip(centres, low, high)
        rounding = np.where((centres >= low) & (centres <= high), step**2 / 12.0, 0.0)
        return float((counter.counts * (beyond**2 + rounding)).sum())

    best = min(CUTS.tolist(), key=error)
    return Range(best * whole.low, best * whole.high)
