"""How fast the project wants kernels to be: goals that the reports hold against what was measured."""

from __future__ import annotations

from sparseflow.core.kernel_speed import KernelRun
from sparseflow.core.map_speed import MAP, MapRun

_MAPS = {0.5: (1.2, 1.3), 0.3: (1.9, 2.0), 0.2: (2.5, 2.6), 0.1: (4.0, 4.3)}
"""Density of the map → speed-up on maps of 28 x 28 and more, and on smaller ones."""
_BOTH = {"block:128x1": 7.5, "block:64x1": 4.5}
_LINEAR = 5.0


def efficiency_goal(run: KernelRun) -> float | None:
    """Useful FLOPs over the FMA peak; None where nothing is asked for."""
    if run.layer.op == "linear":
        return None
    small = run.layer.height * run.layer.width < 28 * 28
    structure = run.structure.partition("@")[0]
    if structure == "unstructured":
        return 0.40 if run.layer.kernel == 1 else (0.43 if small else 0.50)
    return {"block:4x1": 0.72 if small else 0.85, "block:2x1": 0.70}.get(structure)


def map_goal(run: MapRun) -> float | None:
    """Speed-up over the best direct dense kernel; None where nothing is asked for."""
    if run.layer.op == "linear":
        return _LINEAR if run.map_density == 0.1 else None
    if run.tiles < 1.0:
        return None
    if run.judged == MAP:
        goals = _MAPS.get(run.map_density)
        return None if goals is None else goals[run.layer.height < 28]
    structure, _, sparsity = run.structure.partition("@")
    quarter = float(sparsity) == 0.75 and run.map_density == 0.25
    wide = structure == "block:64x1" or run.layer.channels >= 128
    return _BOTH.get(structure) if quarter and wide else None
