"""Layers timed alone: which options there are, what they cost, and that a stopped table goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparseflow.core.latency_table import LatencyTable
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.measure.layer_times import LayerTimer, prunings
from sparseflow.errors import InputError, SparseflowError, StructureError
from sparseflow.studies.tune import TuneRequest, tune

X = np.ones((1, 3, 12, 12), np.float32)


def timer() -> LayerTimer:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU()
    ).eval()
    return LayerTimer(import_model(model, (torch.from_numpy(X),)), measure=False, rounds=3)


def test_prunings_are_those_that_a_structure_can_have() -> None:
    found = [p.text for p in prunings(("unstructured", "nm:2:4", "pattern:4+connectivity"), (0.5, 0.25))]
    assert found == ["unstructured@0.5", "unstructured@0.75", "nm:2:4@0.5", "pattern:4+connectivity@0.75"]
    with pytest.raises(StructureError, match=r"density 1 is not inside \(0, 1\)"):
        prunings(("unstructured",), (1.0,))


def test_options_of_a_layer() -> None:
    wanted = prunings(("block:4x1", "filter", "pattern:4+connectivity"), (0.5, 0.25))
    of_three = timer().times("2", wanted)
    assert of_three.shape == (32, 16, 3, 3)
    assert {(o.structure, o.density) for o in of_three.options} == {
        ("block:4x1", 0.5), ("block:4x1", 0.25), ("filter", 0.5), ("filter", 0.25), ("pattern:4+connectivity", 0.25),
    }  # fmt: skip
    assert all(o.time_s > 0 for o in (of_three.dense, *of_three.options))
    by_name = {(o.structure, o.density): o.nbytes for o in of_three.options}
    assert of_three.dense.nbytes == 32 * 16 * 9 * 4
    assert by_name["filter", 0.5] == of_three.dense.nbytes // 2
    assert by_name["block:4x1", 0.25] < by_name["block:4x1", 0.5] < of_three.dense.nbytes
    pointwise = timer().times("4", wanted)
    assert "pattern:4+connectivity" not in {o.structure for o in pointwise.options}
    with pytest.raises(InputError, match=r"no layer 'x' to tune; there are 0, 2, 4"):
        timer().times("x", wanted)


def test_a_stopped_table_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    request = TuneRequest("net", ("block:4x1",), (0.25,), ("2", "4"))
    whole: Any = LayerTimer.times

    def stopped(self: LayerTimer, name: str, wanted: Any) -> Any:
        if name == "4":
            raise KeyboardInterrupt
        return whole(self, name, wanted)

    monkeypatch.setattr(LayerTimer, "times", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(timer(), [X], request, path, lambda _text: None)
    before = json.loads(path.read_text())
    assert list(before["cases"]) == ["2"]
    monkeypatch.setattr(LayerTimer, "times", whole)
    table = tune(timer(), [X], request, path, lambda _text: None)
    assert json.loads(path.read_text())["cases"]["2"] == before["cases"]["2"]
    assert list(table.layers) == ["2", "4"]
    assert table == LatencyTable.read(path)
    assert table.network_s == before["network_s"] > 0
    other = TuneRequest("net", ("unstructured",), (0.25,), ("2", "4"))
    with pytest.raises(SparseflowError, match=r"its structures is \['block:4x1'\], not \['unstructured'\]"):
        tune(timer(), [X], other, path, lambda _text: None)
