"""The report's and the command line's table of feature maps."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparseflow.core.map_profile import MapCounter, MapProfile
from sparseflow.core.plan import CandidateTime, LayerPlan, Plan

SHAPE = (1, 64, 14, 14)


@pytest.fixture
def plan() -> Plan:
    """Two layers, one of which reads an indexed map."""
    best = CandidateTime("direct", {}, 1e-3, True)
    weight = (64, 64, 3, 3)
    base: Any = ("conv2d", weight, SHAPE, "Dense", 1.0, "dense", 1, 0, 1, 1, 1, 1, best)
    first = LayerPlan("first", *base, map_density=1.0, map_note="no index: too few zeros to skip")
    second = LayerPlan(
        "second", *base, map_density=0.25, map_format="pixel-bitmap", map_index_bytes=2048, map_switch=0.6
    )
    counter = MapCounter("second", SHAPE)
    counter.add((np.arange(np.prod(SHAPE)) % 4 == 0).reshape(SHAPE).astype(np.float32))
    found = counter.result()
    maps = MapProfile((replace(found, name="first", mean=1.0), found), 1)
    return Plan((first, second), "target", 1, True, maps=maps, notes=("map index: 1 of 2 layers",))


def test_the_report_shows_densities_bytes_and_reasons(plan: Plan) -> None:
    from sparseflow.report.kinds.layers import map_table

    table = map_table(plan)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0][-1] == "too few zeros to skip"
    assert rows[1][2].startswith("25.0")
    assert "+" in rows[1][4]
    assert rows[1][5].startswith("60.0")


def test_explain_shows_the_same(plan: Plan) -> None:
    from rich.console import Console

    from sparseflow.report.kinds.layers import map_table
    from sparseflow.report.terminal import drawn

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(drawn(map_table(plan)))
    text = console.export_text()
    assert "map index: 1 of 2 layers" in text
    assert "pixel-bitmap" in text
    assert "too few zeros to skip" in text
