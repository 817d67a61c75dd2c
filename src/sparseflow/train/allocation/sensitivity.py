"""A scan of how each layer bears each density, and the best choice of densities for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparseflow.core.structures import Structure
from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, Slot, SparsityBudget
from sparseflow.train.allocation.knapsack import Budget
from sparseflow.train.allocation.loss_increase import Estimated


@STRATEGIES.register("sensitivity")
class Sensitivity(Estimated, SparsityBudget):
    """The densities of least loss increase, the layers' increases added up, within a budget of weights.

    Attributes
    ----------
    densities : tuple of float
        Those that are tried; dense is always one of the options.
    """

    strategy: Literal["sensitivity"] = "sensitivity"
    densities: tuple[float, ...] = Field(
        default=(0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03), strict=False
    )

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        increase = self.increase(problem)
        options = []
        for slot in problem.slots:
            structure = slot.only("sensitivity")
            scanned = [(d, increase.of(slot.name, structure, d)) for d in self._densities(slot, structure)]
            dense = Assigned(slot.name, None, 1.0, 0.0)
            options.append([dense, *(Assigned(slot.name, structure, d, loss) for d, loss in scanned)])
        kept = [
            [o.density * slot.size for o in found] for slot, found in zip(problem.slots, options, strict=True)
        ]
        return self.least(options, [Budget("weights", kept, self.kept(problem))])

    def _densities(self, slot: Slot, structure: Structure) -> tuple[float, ...]:
        if structure.fixed_density is not None:
            return (structure.fixed_density,)
        return tuple(d for d in self.densities if d <= structure.max_density)
