"""Erdős–Rényi kernels: small layers stay denser."""

from __future__ import annotations

from math import prod
from typing import Literal

from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, SparsityBudget, share_out


@STRATEGIES.register("erk")
class ErdosRenyiKernel(SparsityBudget):
    """Densities in proportion to ``(out + in + kh + kw) / (out · in · kh · kw)``, at most what the structure keeps.

    References
    ----------
    U. Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020, section 3, paragraph (1).
    """

    strategy: Literal["erk"] = "erk"

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        structures = [slot.only("erk") for slot in problem.slots]
        weights = [sum(slot.shape) / prod(slot.shape) for slot in problem.slots]
        caps = [s.max_density for s in structures]
        densities = share_out([s.size for s in problem.slots], weights, caps, self.kept(problem))
        return tuple(
            Assigned(slot.name, s, d) for slot, s, d in zip(problem.slots, structures, densities, strict=True)
        )
