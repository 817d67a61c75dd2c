"""Structure and density of each layer by the compiler's measured table, for a latency or a size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sparseflow.core.latency_table import LatencyTable, LayerTimes
from sparseflow.core.structures import parse_structure
from sparseflow.errors import StructureError
from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, Slot
from sparseflow.train.allocation.knapsack import Budget
from sparseflow.train.allocation.loss_increase import Estimated, LossIncrease


@STRATEGIES.register("latency")
class LatencyAware(Estimated):
    """The structures and densities of least loss increase whose kernels keep a latency, a size, or both.

    A layer's options are the rows of the table whose structure its rule allows and whose kernel is faster than the
    dense one; a layer without such a row stays dense. The loss increases of the layers are added up.

    Attributes
    ----------
    table : str
        Written by ``sparseflow tune`` for this network.
    latency_ms : float, optional
        Of a call of the whole network, what is not in the table included.
    size_kb : float, optional
        1,000 bytes of all packed weights with their indices.
    gain : float
        How much faster than dense an option has to be to be offered, as a fraction of the dense layer's time.

    References
    ----------
    Y. Shen et al., "Structural pruning via latency-saliency knapsack" (HALP), NeurIPS 2022, section 3: a knapsack of
    saliency under a table of latencies, there for numbers of filters.
    """

    strategy: Literal["latency"] = "latency"
    table: str
    latency_ms: float | None = Field(default=None, gt=0)
    size_kb: float | None = Field(default=None, gt=0)
    gain: float = Field(default=0.03, ge=0, lt=1)

    @model_validator(mode="after")
    def _budgeted(self) -> LatencyAware:
        if self.latency_ms is None and self.size_kb is None:
            raise ValueError("neither latency_ms nor size_kb is given; give the budget")
        return self

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        return self.choose(problem, self.options(problem))

    def options(self, problem: Problem) -> list[list[Assigned]]:
        """For every slot dense and what is worth offering, with expected loss increases; no budget counts here."""
        table = LatencyTable.read(self.table)
        increase = self.increase(problem)
        return [self._options(slot, self._row(table, slot), increase) for slot in problem.slots]

    def choose(self, problem: Problem, options: list[list[Assigned]]) -> tuple[Assigned, ...]:
        """One option for every slot within the budgets."""
        budgets = self._budgets(LatencyTable.read(self.table), problem, options)
        return self.least(options, budgets)

    def identity(self) -> dict[str, Any]:
        """See `Strategy`; the table's content stands for its path."""
        try:
            content = Path(self.table).read_bytes()
        except OSError as error:
            raise StructureError(f"{self.table}: cannot be read; write it with sparseflow tune") from error
        return super().identity() | {"table": hashlib.sha256(content).hexdigest()}

    def _row(self, table: LatencyTable, slot: Slot) -> LayerTimes:
        row = table.layers.get(slot.name)
        if row is None or row.shape != slot.shape:
            found = "no such layer" if row is None else f"a weight of shape {row.shape}"
            raise StructureError(
                f"{self.table}: layer {slot.name!r} has shape {slot.shape}, the table has {found}; tune this network"
            )
        return row

    def _options(self, slot: Slot, row: LayerTimes, increase: LossIncrease) -> list[Assigned]:
        """Dense, and what is worth offering."""
        allowed = {str(s) for s in slot.structures}
        offered = [Assigned(slot.name, None, 1.0, 0.0, row.dense.time_s, row.dense.nbytes)]
        for option in row.options:
            faster = option.time_s <= (1.0 - self.gain) * row.dense.time_s
            if option.structure in allowed and (faster or self.latency_ms is None):
                structure = parse_structure(option.structure)
                loss = increase.of(slot.name, structure, option.density)
                offered.append(
                    Assigned(slot.name, structure, option.density, loss, option.time_s, option.nbytes)
                )
        return offered

    def _budgets(self, table: LatencyTable, problem: Problem, options: list[list[Assigned]]) -> list[Budget]:
        """In milliseconds and kB of the slots alone: what every choice has besides is taken off."""
        slots = {slot.name for slot in problem.slots}
        others = [layer.dense for name, layer in table.layers.items() if name not in slots]
        budgets = []
        for what, most, scale, rest, part in (
            ("latency (ms", self.latency_ms, 1e3, table.rest_s, "time_s"),
            ("size (kB", self.size_kb, 1e-3, table.rest_nbytes, "nbytes"),
        ):
            if most is not None:
                fixed = scale * (rest + sum(getattr(o, part) for o in others))
                costs = [[scale * (getattr(o, part) or 0.0) for o in found] for found in options]
                budgets.append(Budget(f"{what}, {fixed:.3g} for the rest taken off)", costs, most - fixed))
        return budgets
