"""What a run on a sparse map says: ratios, the better of one side alone."""

from __future__ import annotations

import pytest

from sparseflow.core.kernel_speed import Layer
from sparseflow.core.map_speed import BOTH, DIRECT, MAP, WEIGHTS, WINOGRAD, MapRun

LARGE = Layer("3x3 64→64 @56²", "3x3", 64, 64, 56, 56, 3)
SMALL = Layer("3x3 256→256 @14²", "3x3", 256, 256, 14, 14, 3)


def run(layer: Layer, structure: str, map_density: float, **times_s: float) -> MapRun:
    kept = 1.0 if structure == "dense" else 0.25
    return MapRun(layer, structure, kept, map_density, times_s, dict.fromkeys(times_s, "kernel"), 100.0)


def test_a_map_alone_is_judged_by_the_map_kernel() -> None:
    found = run(LARGE, "dense", 0.1, **{DIRECT: 8e-3, WINOGRAD: 3e-3, MAP: 2e-3})
    assert found.judged == MAP
    assert (found.speedup(DIRECT), found.speedup(WINOGRAD)) == (pytest.approx(4.0), pytest.approx(1.5))
    assert found.over_alone is None
    assert found.efficiency == pytest.approx(LARGE.flops / 2e-3 * 1e-9 * 0.1 / 100)


def test_both_sides_are_compared_with_the_better_one() -> None:
    found = run(SMALL, "block:128x1@0.75", 0.25, **{DIRECT: 8e-3, WEIGHTS: 3e-3, MAP: 2e-3, BOTH: 1e-3})
    assert found.judged == BOTH
    assert found.over_alone == pytest.approx(2.0)
    assert found.speedup(DIRECT) == pytest.approx(8.0)


def test_a_layer_without_such_a_kernel_has_no_ratio() -> None:
    found = run(LARGE, "block:16x1@0.75", 0.25, **{DIRECT: 8e-3})
    assert found.speedup(DIRECT) is None
    assert found.over_alone is None
    assert found.efficiency is None
