"""One option for each item, the least loss within budgets: the multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import optimize, sparse

from sparseflow.errors import StructureError


@dataclass(frozen=True)
class Budget:
    """What the chosen options may cost together.

    Attributes
    ----------
    what : str
        For messages: ``latency``.
    costs : sequence of sequence of float
        For each item the cost of each of its options.
    most : float
    """

    what: str
    costs: Sequence[Sequence[float]]
    most: float

    @property
    def least(self) -> float:
        """The cost of the cheapest options."""
        return float(sum(min(c) for c in self.costs))


def solve(losses: Sequence[Sequence[float]], budgets: Sequence[Budget]) -> tuple[int, ...]:
    """For each item the option that it takes: the least sum of losses within all budgets.

    A mixed-integer linear program, one binary variable for each option, solved by HiGHS to a gap of zero.

    Parameters
    ----------
    losses : sequence of sequence of float
        For each item the loss of each of its options.
    budgets : sequence of Budget

    Raises
    ------
    StructureError
        If no choice keeps the budgets.

    References
    ----------
    H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack problems", Springer 2004, chapter 11; Q. Huangfu, J. Hall,
    "Parallelizing the dual revised simplex method", 2018 (HiGHS).
    """
    for budget in budgets:
        if budget.least > budget.most:
            raise StructureError(
                f"allocation: {budget.what} of {budget.most:.4g} asked for, but the fastest options of all layers "
                f"together take {budget.least:.4g}; ask for more, or offer sparser options"
            )
    sizes = [len(item) for item in losses]
    flat = np.concatenate([np.asarray(item, dtype=np.float64) for item in losses])
    one_each = sparse.block_diag([np.ones((1, n)) for n in sizes], format="csr")
    constraints = [optimize.LinearConstraint(one_each, 1.0, 1.0)]
    for budget in budgets:
        costs = np.concatenate([np.asarray(c, dtype=np.float64) for c in budget.costs]) / budget.most
        constraints.append(optimize.LinearConstraint(costs[None, :], -np.inf, 1.0))
    found = optimize.milp(
        flat / max(float(np.abs(flat).max()), 1e-300),  # the solver's tolerances are absolute
        integrality=np.ones(len(flat)),
        bounds=optimize.Bounds(0.0, 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise StructureError(f"allocation: no choice of options keeps all budgets ({found.message})")
    starts = np.cumsum([0, *sizes])
    return tuple(int(found.x[a:b].argmax()) for a, b in pairwise(starts))
