"""One threshold of magnitude for all layers."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sparseflow.core.arrays import Array, block_sizes, reduce_blocks
from sparseflow.core.structures import Structure
from sparseflow.core.structures.base import UnitStructure
from sparseflow.core.structures.product import ProductStructure
from sparseflow.errors import StructureError
from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, SparsityBudget
from sparseflow.train.rules import scores_of, weight_of


@STRATEGIES.register("global-magnitude")
class GlobalMagnitude(SparsityBudget):
    """The units with the largest mean magnitudes of all layers together stay, at least one in each layer.

    References
    ----------
    D. Blalock et al., "What is the state of neural network pruning?", MLSys 2020, section 7.1 (global magnitude
    pruning).
    """

    strategy: Literal["global-magnitude"] = "global-magnitude"

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        structures = [slot.only("global-magnitude") for slot in problem.slots]
        units = [
            unit_means(s, scores_of(weight_of(problem.model, slot.name)))
            for slot, s in zip(problem.slots, structures, strict=True)
        ]
        means = np.concatenate([m for m, _ in units])
        sizes = np.concatenate([n for _, n in units])
        layer = np.concatenate([np.full(len(m), i) for i, (m, _) in enumerate(units)])
        order = np.argsort(-means, kind="stable")
        stays = order[np.cumsum(sizes[order]) <= self.kept(problem) + 0.5]
        counts = np.maximum(1, np.bincount(layer[stays], minlength=len(units)))
        return tuple(
            Assigned(slot.name, s, float(count * s.max_density / len(m)))
            for slot, s, count, (m, _) in zip(problem.slots, structures, counts, units, strict=True)
        )


def unit_means(structure: Structure, scores: Array) -> tuple[Array, Array]:
    """The mean score of the weights that each unit would keep, and their number; flat.

    Raises
    ------
    StructureError
        If the structure has no units to choose from.
    """
    if isinstance(structure, ProductStructure):
        inner, outer = structure.parts
        kept = inner.select_batch(scores[None], inner.max_density)[0]
        unit = outer.unit(scores.shape)
        counts = reduce_blocks(np.add, kept.astype(np.float64), unit).reshape(-1)
        sums = reduce_blocks(np.add, np.where(kept, scores, 0).astype(np.float64), unit).reshape(-1)
        return sums / np.maximum(counts, 1), counts
    if isinstance(structure, UnitStructure):
        unit = structure.unit(scores.shape)
        counts = np.asarray(block_sizes(unit, scores.shape), dtype=np.float64)
        sums = reduce_blocks(np.add, scores.astype(np.float64), unit)
        return (sums / counts).reshape(-1), np.broadcast_to(counts, sums.shape).reshape(-1)
    raise StructureError(
        f"{structure}: global-magnitude needs units that are kept or removed; choose another"
    )
