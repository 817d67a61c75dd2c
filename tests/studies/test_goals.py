"""What the project asks of its kernels."""

from __future__ import annotations

import pytest

from sparseflow.core.kernel_speed import KernelRun, Layer
from sparseflow.core.map_speed import MapRun
from sparseflow.studies.goals import efficiency_goal, map_goal

LARGE = Layer("3x3 64→64 @56²", "3x3", 64, 64, 56, 56, 3)
SMALL = Layer("3x3 256→256 @14²", "3x3", 256, 256, 14, 14, 3)
LINEAR = Layer("768→768", "linear", 768, 768, 1, 1, op="linear")


@pytest.mark.parametrize(
    ("structure", "kernel", "size", "goal"),
    [
        ("block:4x1@0.9", 1, 28, 0.85),
        ("block:4x1@0.9", 3, 14, 0.72),
        ("unstructured@0.9", 3, 56, 0.50),
        ("unstructured@0.9", 3, 7, 0.43),
        ("unstructured@0.9", 1, 7, 0.40),
        ("block:2x1@0.9", 3, 7, 0.70),
        ("dense", 3, 56, None),
    ],
)
def test_efficiency_goals(structure: str, kernel: int, size: int, goal: float | None) -> None:
    layer = Layer("x", "x", 8, 8, size, size, kernel)
    run = KernelRun(layer, structure, 0.1, "taps", {}, 1.0, 1.0, "d", 1.0, None, 1.0)
    assert efficiency_goal(run) == goal


@pytest.mark.parametrize(
    ("layer", "structure", "density", "tiles", "goal"),
    [
        (LARGE, "dense", 0.1, 1.0, 4.0),
        (SMALL, "dense", 0.1, 1.0, 4.3),
        (SMALL, "dense", 0.4, 1.0, None),
        (SMALL, "dense", 0.1, 0.5, None),
        (SMALL, "block:128x1@0.75", 0.25, 1.0, 7.5),
        (SMALL, "block:64x1@0.75", 0.25, 1.0, 4.5),
        (SMALL, "block:64x1@0.75", 0.5, 1.0, None),
        (SMALL, "block:16x1@0.75", 0.25, 1.0, None),
        (LINEAR, "dense", 0.1, 1.0, 5.0),
        (LINEAR, "dense", 0.2, 1.0, None),
    ],
)
def test_map_goals(layer: Layer, structure: str, density: float, tiles: float, goal: float | None) -> None:
    assert map_goal(MapRun(layer, structure, 0.25, density, {}, {}, 100.0, tiles)) == goal
