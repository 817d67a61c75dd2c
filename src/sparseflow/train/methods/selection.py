"""How a structure's mask can be chosen during a sweep over a layer's columns."""

from __future__ import annotations

from math import lcm

import numpy as np

from sparseflow.core.arrays import Keep, Shape, expand_blocks, reduce_blocks
from sparseflow.core.structures import (
    DenseBlocks,
    GroupStructure,
    ProductStructure,
    Structure,
    UnitStructure,
)


def channels_at_once(structure: Structure, shape: Shape) -> int | None:
    """The smallest number of input channels that hold whole units, or None if only all of them do.

    The part of a mask in such a chunk of channels can be chosen apart from the rest.
    """
    if isinstance(structure, UnitStructure):
        extent = structure.unit(shape)[1]
        return extent if extent < shape[1] else None
    if isinstance(structure, GroupStructure):
        return structure.group()[1]
    if isinstance(structure, ProductStructure):
        inner, outer = (channels_at_once(part, shape) for part in structure.parts)
        return None if inner is None or outer is None else lcm(inner, outer)
    if isinstance(structure, DenseBlocks):
        return min(structure.cols, shape[1])
    return None


def shared_columns(structure: Structure, shape: Shape) -> Keep | None:
    """The unit of each column (in, flattened over channel and position) if units span all rows, else None.

    Returns
    -------
    ndarray of int, shape (in,)
    """
    if not isinstance(structure, UnitStructure) or structure.unit(shape)[0] < shape[0]:
        return None
    unit = (1, *structure.unit(shape)[1:])
    counts = reduce_blocks(np.add, np.ones((1, *shape[1:]), dtype=np.int64), unit)
    labels = np.arange(counts.size).reshape(counts.shape)
    return expand_blocks(labels, unit, (1, *shape[1:])).reshape(-1)


def spans_columns(structure: Structure, shape: Shape) -> bool:
    """Whether a unit is made of whole rows, so that nothing in the layer can make up for its loss."""
    return isinstance(structure, UnitStructure) and structure.unit(shape)[1:] == tuple(shape[1:])


def density_of(structure: Structure, keep: Keep, density: float) -> float:
    """The density that makes ``structure`` keep as many units in a part of the weight as ``keep`` does there.

    Parameters
    ----------
    structure : Structure
    keep : ndarray of bool, shape (out, some channels, *kernel)
        Of a mask of the structure, cut at whole units.
    density : float
        What the whole layer was asked for; taken where the structure's parts all keep the same.
    """
    if isinstance(structure, UnitStructure):
        return float(reduce_blocks(np.logical_or, keep, structure.unit(keep.shape)).mean())
    if isinstance(structure, ProductStructure):
        inner, outer = structure.parts
        return density_of(outer, keep, density) * inner.max_density
    return density
