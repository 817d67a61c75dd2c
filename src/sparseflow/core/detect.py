"""The structure of a weight, found from its zeros alone, never from a label.

A structure *explains* the zeros if its cover (the smallest mask of that structure which keeps every non-zero)
keeps at most `TOLERANCE` times as many weights as there are non-zeros. Among those that do, the one with the
shortest description wins: the bits that say which units are kept, plus the zeros that its cover would store
as values. This prefers the most specific structure, as it has the fewest units to name, and never hides many
zeros in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sparseflow.core.arrays import Array, Keep, Shape, block_sizes, reduce_blocks
from sparseflow.core.structures import (
    NM,
    Block,
    BlockPunched,
    Channel,
    Column,
    Connectivity,
    Filter,
    Pattern,
    PatternConnectivity,
    Product,
    Structure,
    UnitStructure,
    Unstructured,
)
from sparseflow.core.structures.pattern import POSITIONS, library_covering

TOLERANCE = 1.05
"""Largest number of weights that a cover may keep, per non-zero."""

NM_CHOICES = ((1, 2), (2, 4), (1, 4), (4, 8), (2, 8), (1, 8), (8, 16), (4, 16), (2, 16), (1, 16))
"""N:M structures looked for."""

BLOCK_EXTENTS = (2, 4, 8, 16, 32, 64, 128)
"""Extents of a block looked for, along filters and along channels."""

MAX_PATTERNS = 16
"""Most patterns of a library looked for; published ones have 4 to 12."""

ROWS = (1, 2, 4, 8, 16)
"""Numbers of filters sharing taps that `best_rows` answers for."""


@dataclass(frozen=True)
class Explanation:
    """A structure that explains the zeros.

    Attributes
    ----------
    structure : Structure
    cover_density : float
        Fraction of the weights that its cover keeps.
    index_bits : float
        Least bits that name the kept units: log2 of the number of masks of that many units.
    description_bits : float
        ``index_bits`` and the covered zeros stored as values; the least wins.
    """

    structure: Structure
    cover_density: float
    index_bits: float
    description_bits: float


@dataclass(frozen=True)
class Detection:
    """What the zeros of a weight say.

    Attributes
    ----------
    structure : Structure or None
        The most specific structure that explains them, None for a weight to be treated as dense.
    density : float
        Fraction of non-zero weights.
    cover_density : float
        Fraction of the weights that the structure keeps, at least ``density``.
    reason : str
        Why, in a sentence.
    explanations : tuple of Explanation
        All structures that explain the zeros, best first.
    dead_filters, dead_channels : int
        Filters and input channels that are zero throughout.
    live : Detection or None
        The same for what is left without them; None if there are none, or nothing else.
    """

    structure: Structure | None
    density: float
    cover_density: float
    reason: str
    explanations: tuple[Explanation, ...] = ()
    dead_filters: int = 0
    dead_channels: int = 0
    live: Detection | None = None


def detect(weight: Array) -> Detection:
    """The structure that explains the zeros of ``weight`` in the fewest bits.

    A weight with at most 1 − 1/`TOLERANCE` zeros that no structure but `Unstructured` explains is dense.
    Inside `DenseBlocks`, rows and columns of blocks are found as the `Block` that they are.

    Parameters
    ----------
    weight : ndarray, shape (out, in) or (out, in, *kernel)

    Raises
    ------
    StructureError
        If it is not of such a shape.

    References
    ----------
    Rissanen, *Modeling by shortest data description*, Automatica 1978, for the choice by description length.
    """
    weight = np.asarray(weight)
    Unstructured().check(weight.shape)
    keep = np.asarray(weight != 0)
    value_bits = 8 * weight.dtype.itemsize
    found = _detect(keep, value_bits)
    filters, channels = (np.asarray(keep.any(axis=_all_but(axis, keep))) for axis in (0, 1))
    dead = (int(np.count_nonzero(~filters)), int(np.count_nonzero(~channels)))
    if not any(dead):
        return found
    live = _detect(keep[filters][:, channels], value_bits) if found.density else None
    return replace(found, dead_filters=dead[0], dead_channels=dead[1], live=live)


def _detect(keep: Keep, value_bits: int) -> Detection:
    nonzeros = int(np.count_nonzero(keep))
    density = nonzeros / keep.size
    if nonzeros == keep.size:
        return Detection(None, 1.0, 1.0, "dense: no weight is zero")
    search = _Search(keep, nonzeros, value_bits)
    found = sorted(search.explanations(), key=lambda e: e.description_bits)
    best = found[0]
    if isinstance(best.structure, Unstructured) and nonzeros * TOLERANCE >= keep.size:
        reason = f"dense: {keep.size - nonzeros} scattered zeros of {keep.size} weights are too few to use"
        return Detection(None, density, 1.0, reason, tuple(found))
    return Detection(best.structure, density, best.cover_density, _reason(found, density), tuple(found))


def best_rows(weight: Array) -> dict[int, float]:
    """Density of the tap cover for each number of consecutive filters that may share taps.

    Parameters
    ----------
    weight : ndarray, shape (out, in) or (out, in, *kernel)

    Returns
    -------
    dict of int to float
        R → fraction of the weights that a tap list with ``rows=R`` multiplies, for R in `ROWS`. R = 1 is the
        density itself; the padding rows of a last block are not counted.
    """
    weight = np.asarray(weight)
    Unstructured().check(weight.shape)
    keep = weight.reshape(weight.shape[0], -1) != 0
    densities = {}
    for rows in ROWS:
        shared = reduce_blocks(np.logical_or, keep, (rows, 1))
        densities[rows] = _cover_weights(shared, (rows, 1), keep.shape) / keep.size
    return densities


@dataclass(frozen=True)
class _Search:
    """The structures that explain ``keep``, with their description lengths."""

    keep: Keep
    nonzeros: int
    value_bits: int

    def explanations(self) -> Iterator[Explanation]:
        yield from self._units()
        yield from self._blocks()
        yield from self._nm()
        yield from self._patterns()
        bits = _log2_choose(self.keep.size, self.nonzeros)
        yield Explanation(Unstructured(), self.nonzeros / self.keep.size, bits, bits)

    def _explain(self, structure: Structure, cover: int, bits: float) -> Iterator[Explanation]:
        # a cover that keeps everything says nothing
        if cover <= TOLERANCE * self.nonzeros and cover < self.keep.size:
            stored = (cover - self.nonzeros) * self.value_bits
            yield Explanation(structure, cover / self.keep.size, bits, bits + stored)

    def _unit(self, structure: UnitStructure) -> Iterator[Explanation]:
        unit = structure.unit(self.keep.shape)
        any_kept = reduce_blocks(np.logical_or, self.keep, unit)
        bits = _log2_choose(any_kept.size, int(np.count_nonzero(any_kept)))
        yield from self._explain(structure, _cover_weights(any_kept, unit, self.keep.shape), bits)

    def _units(self) -> Iterator[Explanation]:
        yield from self._unit(Filter())
        yield from self._unit(Channel())
        if _positions(self.keep.shape) > 1:
            yield from self._unit(Column())
            yield from self._unit(Connectivity())

    def _blocks(self) -> Iterator[Explanation]:
        # a larger block's cover contains a smaller one's, so growth stops where the smaller one fails
        filters, channels = self.keep.shape[:2]
        failed: list[tuple[int, int]] = []
        for out in (1, *BLOCK_EXTENTS):
            for in_ in (1, *BLOCK_EXTENTS):
                if (out, in_) == (1, 1) or out > filters or in_ > channels:
                    continue
                if any(out % o == 0 and in_ % i == 0 for o, i in failed):
                    continue
                punched = out > 1 and in_ > 1 and _positions(self.keep.shape) > 1
                block = BlockPunched(out, in_) if punched else Block(out, in_)
                found = list(self._unit(block))
                yield from found
                if not found:
                    failed.append((out, in_))

    def _nm(self) -> Iterator[Explanation]:
        if not self.nonzeros:
            return
        for axis, units in ((1, Filter()), (0, Channel())):
            alive: Keep = np.asarray(self.keep.any(axis=_all_but(1 - axis, self.keep)))
            live = self.keep if alive.all() else np.compress(alive, self.keep, axis=1 - axis)
            for n, m in NM_CHOICES:
                cover = live.size * n // m
                if live.shape[axis] % m or not self.nonzeros <= cover <= TOLERANCE * self.nonzeros:
                    continue
                structure = NM(n, m, axis)
                if structure.cover(live) is None:
                    continue
                bits = live.size // m * _log2_choose(m, n)
                if alive.all():
                    yield from self._explain(structure, cover, bits)
                else:
                    bits += _log2_choose(len(alive), int(alive.sum()))
                    yield from self._explain(Product(structure, units), cover, bits)

    def _patterns(self) -> Iterator[Explanation]:
        shape = self.keep.shape
        if tuple(shape[2:]) != (3, 3) or not self.nonzeros:
            return
        counts = np.count_nonzero(self.keep.reshape(-1, POSITIONS), axis=1)
        entries, kernels = int(counts.max()), int(np.count_nonzero(counts))
        if not 2 <= entries < POSITIONS or kernels * entries > TOLERANCE * self.nonzeros:
            return
        library = library_covering(self.keep, entries, MAX_PATTERNS)
        if library is None:
            return
        used = len(library) * math.log2(math.comb(POSITIONS, entries))
        filters = self.keep.any(axis=(1, 2, 3))
        in_filters = int(filters.sum()) * shape[1]
        names = kernels * math.log2(len(library))
        if kernels == counts.size:
            yield from self._explain(Pattern(entries, library, len(library)), kernels * entries, used + names)
            return
        bits = used + names + _log2_choose(counts.size, kernels)
        joint = PatternConnectivity(entries, library, len(library))
        yield from self._explain(joint, kernels * entries, bits)
        if kernels == in_filters:
            bits = used + names + _log2_choose(shape[0], int(filters.sum()))
            product = Product(Pattern(entries, library, len(library)), Filter())
            yield from self._explain(product, kernels * entries, bits)


def _all_but(axis: int, x: Array) -> Shape:
    return tuple(a for a in range(x.ndim) if a != axis)


def _positions(shape: Shape) -> int:
    return math.prod(shape[2:])


def _cover_weights(kept_units: Keep, unit: Shape, shape: Shape) -> int:
    return int((kept_units * block_sizes(unit, shape)).sum())


def _log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _reason(found: list[Explanation], density: float) -> str:
    best = found[0]
    text = (
        f"{best.structure.brief} covers {best.cover_density:.4g} of the weights, density {density:.4g}, "
        f"in {best.index_bits:,.0f} index bits"
    )
    if len(found) > 1:
        second = found[1]
        bits = f"{second.description_bits:,.0f}"
        text += f"; next best: {second.structure.brief} with {bits} bits, stored zeros included"
    return text
