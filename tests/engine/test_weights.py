"""Weights stored in a narrower type: rounded once, then read exactly; half the bytes where a kernel stores them so."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.core import BFLOAT16, ELEMENT_TYPES, FLOAT16, ElementType, parse_sparsify
from sparseflow.engine.sparsify import sparsify
from sparseflow.errors import CompileError

NARROW = pytest.mark.parametrize("element", [BFLOAT16, FLOAT16], ids=str)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 5 * 6, 40), nn.ReLU(), nn.Linear(40, 10),
    ).eval()  # fmt: skip


def rounded(model: nn.Module, element: ElementType) -> nn.Module:
    """A copy whose weights are numbers of ``element``; biases stay."""
    model = deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = torch.from_numpy(element.rounded(layer.weight.detach().numpy()))
    return model


@NARROW
@pytest.mark.parametrize("pruning", ["", "unstructured@0.8", "block:4x1@0.8"])
def test_the_engine_equals_the_network_with_rounded_weights(element: ElementType, pruning: str) -> None:
    model = network()
    if pruning:
        sparsify(model, parse_sparsify(pruning))
    x = torch.randn(1, 3, 12, 14)
    engine = sparseflow.compile(model, (x,), weights=element.name, measure=False)
    with torch.no_grad():
        np.testing.assert_allclose(engine(x).numpy(), rounded(model, element)(x).numpy(), atol=2e-6)
        assert np.abs(engine(x).numpy() - model(x).numpy()).max() > 0  # rounding is seen
    assert engine.plan.weights == element.name


@NARROW
def test_linear_layers_of_one_row_take_half_the_bytes(element: ElementType, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(256, 64)).eval(), torch.randn(1, 256)
    wide, narrow = (
        sparseflow.compile(model, (x,), weights=w, measure=False) for w in ("float32", element.name)
    )
    assert narrow.plan.layers[0].value_bytes * 2 == wide.plan.layers[0].value_bytes == 64 * 256 * 4
    loaded = sparseflow.Engine.load(narrow.save(tmp_path / "engine"))
    assert loaded.plan == narrow.plan
    np.testing.assert_array_equal(loaded(x).numpy(), narrow(x).numpy())


def test_measured_choices_compile_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    model, x = nn.Sequential(nn.Linear(300, 100)).eval(), torch.randn(1, 300)
    engine = sparseflow.compile(model, (x,), weights="bfloat16")
    assert any("bits" in c.parameters for c in engine.plan.layers[0].candidates)
    with torch.no_grad():
        np.testing.assert_allclose(engine(x).numpy(), rounded(model, BFLOAT16)(x).numpy(), atol=2e-6)


def test_what_is_no_type_or_does_not_fit_is_told_in_one_line() -> None:
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(1, 8)
    for wrong in ("int3", 16, None):
        unknown: Any = wrong
        with pytest.raises(CompileError, match="allowed: " + ", ".join(ELEMENT_TYPES)):
            sparseflow.compile(model, (x,), weights=unknown)
    model[0].weight.data[2, 3] = 1e6
    with pytest.raises(
        CompileError, match=r"layer 0: float16: found a value of magnitude 1e\+06; allowed: up to"
    ):
        sparseflow.compile(model, (x,), weights="float16")


def test_maps_are_counted_with_the_rounded_weights() -> None:
    """A weight that float16 rounds to zero makes a map of zeros."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    model[0].weight.data = torch.full((4, 1, 1, 1), 1e-9)
    x = torch.ones(1, 1, 8, 8)
    densities = {}
    for weights in ("float32", "float16"):
        engine = sparseflow.compile(model, (x,), weights=weights, calibration=[x], measure=False)
        assert engine.plan.maps is not None
        densities[weights] = engine.plan.maps.layers[-1].mean
    assert densities == {"float32": 1.0, "float16": 0.0}
