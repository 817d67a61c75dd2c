"""The same density everywhere."""

from __future__ import annotations

from typing import Literal

from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, SparsityBudget, share_out


@STRATEGIES.register("uniform")
class Uniform(SparsityBudget):
    """Every layer gets the same density; what a structure cannot keep is shared out among the others."""

    strategy: Literal["uniform"] = "uniform"

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        structures = [slot.only("uniform") for slot in problem.slots]
        caps = [s.max_density for s in structures]
        sizes = [slot.size for slot in problem.slots]
        densities = share_out(sizes, [1.0] * len(sizes), caps, self.kept(problem))
        return tuple(
            Assigned(slot.name, s, d) for slot, s, d in zip(problem.slots, structures, densities, strict=True)
        )
