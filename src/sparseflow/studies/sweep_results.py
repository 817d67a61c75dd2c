"""What a sweep found: accuracy of every cell, and the latency of its engine; importable without torch and TVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparseflow.core.plan import Measurement
from sparseflow.studies.results import Environment


@dataclass(frozen=True)
class EngineFigures:
    """The compiled network of a cell.

    Attributes
    ----------
    accuracy : float
        On the whole test data, by the engine, in 0..1.
    max_relative_error : float
        Largest difference of the engine's outputs from torch's, relative to the largest output.
    latency : Measurement
        Of one call with batch 1; all cells' engines took turns in one run.
    macs : int
        Multiply-accumulates that the chosen kernels do for one call.
    """

    accuracy: float
    max_relative_error: float
    latency: Measurement
    macs: int


@dataclass(frozen=True)
class CellResult:
    """One cell of a sweep, trained to its end.

    Attributes
    ----------
    name : str
    method : str
    structure : str
        The sweep's own title of structure and sparsity.
    accuracy : float
        On the test data after the last epoch, by torch, in 0..1.
    epochs : int
        Sparsity training and retraining together, the dense training not counted.
    seconds : float
        Wall time of those epochs.
    conv_compression : float
        All convolution weights divided by those that are left.
    aim : float or None
        Points of accuracy that may be lost at most, where the sweep sets an aim.
    engine : EngineFigures or None
        None as long as the cell was not measured.
    """

    name: str
    method: str
    structure: str
    accuracy: float
    epochs: int
    seconds: float
    conv_compression: float
    aim: float | None = None
    engine: EngineFigures | None = None


@dataclass(frozen=True)
class SweepResult:
    """All finished cells of a sweep, and the dense network that they started from.

    Attributes
    ----------
    dense : CellResult
    cells : tuple of CellResult
    pending : tuple of str
        Cells that the budget did not reach; the same command goes on with them.
    """

    sweep: str
    dense: CellResult
    cells: tuple[CellResult, ...]
    pending: tuple[str, ...]
    environment: Environment
    kind: Literal["sweep"] = "sweep"

    def points_lost(self, cell: CellResult) -> float:
        """Accuracy of the dense network minus the cell's, in percentage points."""
        return 100 * (self.dense.accuracy - cell.accuracy)

    def reached(self, cell: CellResult) -> bool | None:
        """Whether the cell keeps its aim; None where there is none."""
        return None if cell.aim is None else self.points_lost(cell) <= cell.aim + 1e-9

    def speedup(self, cell: CellResult) -> float | None:
        """Median latency of the dense engine over the cell's."""
        if self.dense.engine is None or cell.engine is None:
            return None
        return self.dense.engine.latency.median_s / cell.engine.latency.median_s

    def mac_fraction(self, cell: CellResult) -> float | None:
        """Multiply-accumulates of the cell's engine over the dense engine's."""
        if self.dense.engine is None or cell.engine is None:
            return None
        return cell.engine.macs / self.dense.engine.macs

    @property
    def measured(self) -> tuple[tuple[CellResult, EngineFigures], ...]:
        """The cells that were measured, the dense one included, each with its figures."""
        return tuple((c, c.engine) for c in (self.dense, *self.cells) if c.engine is not None)

    @property
    def pareto(self) -> tuple[CellResult, ...]:
        """Measured cells, the dense one included, than which none is both faster and more accurate."""
        ordered = sorted(self.measured, key=lambda cell: (cell[1].latency.median_s, -cell[0].accuracy))
        front: list[CellResult] = []
        for cell, _ in ordered:
            if not front or cell.accuracy > front[-1].accuracy:
                front.append(cell)
        return tuple(front)
