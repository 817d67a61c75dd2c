"""Layers of few rows in int8 engines: near torch, in a quarter of the bytes, in float32 where that is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.core import parse_structure
from sparseflow.kernels.gemv.bitmap import FewRowsBitmap
from sparseflow.kernels.gemv.levels import FewRowsInt8
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.workload import Workload
from tests.kernels.conftest import NEEDS_QUADS

pytestmark = NEEDS_QUADS


class Mlp(nn.Module):
    """Three layers, the second with a residual; sizes that fill neither quads nor vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(203, 301), nn.Linear(301, 301), nn.Linear(301, 37)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.a(x))
        return self.c(nn.functional.gelu(self.b(x) + x))


def classifier() -> nn.Module:
    """A convolution, its mean, and a classifier."""
    features = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1000))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {"mlp": (Mlp, (203,)), "classifier": (classifier, (3, 17, 17))}


def _net(name: str, density: float = 1.0) -> tuple[nn.Module, list[Any]]:
    """A network pruned by magnitude, and inputs."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    model = make().eval()
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        keep = parse_structure("unstructured").mask(layer.weight.detach().abs().numpy(), density).keep
        layer.weight.data *= torch.from_numpy(keep.copy())
    return model, [torch.randn(1, *shape) for _ in range(4)]


def _int8(model: nn.Module, calls: list[Any], **more: Any) -> Any:
    return sparseflow.compile(model, (calls[0],), measure=False, precision="int8", calibration=calls, **more)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("density", "template"), [(1.0, "few-rows-int8"), (0.5, "few-rows-bitmap")])
@pytest.mark.parametrize("name", NETS)
def test_networks_are_near_torch(name: str, density: float, template: str, threads: int) -> None:
    model, calls = _net(name, density)
    engine = _int8(model, calls, threads=threads)
    linear = [layer for layer in engine.plan.layers if layer.op == "linear"]
    assert {(layer.element, layer.chosen.template) for layer in linear} == {("uint8", template)}
    for x in calls:
        expected = model(x).detach()
        assert float((engine(x) - expected).abs().max() / expected.abs().max()) < 0.04


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_folder_shrinks_and_the_engine_survives_it(density: float, tmp_path: Path) -> None:
    model, calls = _net("mlp", density)
    engine, plain = _int8(model, calls), sparseflow.compile(model, (calls[0],), measure=False)
    loaded = sparseflow.Engine.load(engine.save(tmp_path / "int8.engine"))
    plain.save(tmp_path / "fp32.engine")
    np.testing.assert_array_equal(loaded(calls[1]), engine(calls[1]))
    assert loaded.plan == engine.plan
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    stored = sum(layer.value_bytes + layer.index_bytes for layer in engine.plan.layers)
    assert stored < (1.1 if density == 1.0 else 0.75) * weights
    small, large = (_bytes(tmp_path / f"{n}.engine") for n in ("int8", "fp32"))
    assert small < large - 2.5 * weights


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_sums_of_two_powers_of_two_are_stored_as_codes(tmp_path: Path) -> None:
    model, calls = _net("mlp")
    numbers = np.array([1, 2, 3, 4, 5, 6, 8, 12], np.float32)
    random = np.random.default_rng(0)
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        shape = tuple(layer.weight.shape)
        drawn = random.choice(np.concatenate([-numbers, [0], numbers]), shape) * random.uniform(1e-3, 2e-2)
        layer.weight.data = torch.from_numpy(drawn.astype(np.float32))
    engine = _int8(model, calls)
    assert {layer.chosen.template for layer in engine.plan.layers} == {"few-rows-codes"}
    for layer in engine.plan.layers:
        assert layer.value_bytes < 0.6 * np.prod(layer.weight_shape)
        assert layer.macs_computed == pytest.approx(16 / 17 * layer.macs_dense, rel=0.06)
    expected = model(calls[1]).detach()
    assert float((engine(calls[1]) - expected).abs().max() / expected.abs().max()) < 0.04
    loaded = sparseflow.Engine.load(engine.save(tmp_path / "codes.engine"))
    np.testing.assert_array_equal(loaded(calls[1]), engine(calls[1]))


def test_a_layer_that_float32_computes_faster_stays_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = _net("mlp")
    predicted = FewRowsInt8.predict_cycles

    def slow_last(self: FewRowsInt8, workload: Workload, candidate: Candidate) -> float:
        return predicted(self, workload, candidate) + (1e9 if workload.filters == 37 else 0.0)

    monkeypatch.setattr(FewRowsInt8, "predict_cycles", slow_last)
    engine = _int8(model, calls)
    assert [layer.element for layer in engine.plan.layers] == ["uint8", "uint8", "float32"]
    expected = model(calls[1]).detach()
    assert float((engine(calls[1]) - expected).abs().max() / expected.abs().max()) < 0.04


def test_a_plan_says_what_a_bitmap_stores_and_why_it_is_left_out() -> None:
    model, calls = _net("mlp", 0.3)
    layers = _int8(model, calls).plan.layers
    for layer in layers:
        assert layer.format == FewRowsBitmap.format
        assert layer.index_bytes >= np.prod(layer.weight_shape) / 8
        assert layer.macs_computed == pytest.approx(0.3 * layer.macs_dense, rel=0.1)
    model, calls = _net("mlp", 0.95)
    for layer in _int8(model, calls).plan.layers:
        reasons = {r.template: r.reason for r in layer.rejected}
        assert "cost more than the zeros save" in reasons["few-rows-bitmap"]
