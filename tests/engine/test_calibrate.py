"""Calibration: the densities it counts, what it refuses, and that they reach the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow import Engine
from sparseflow.core.codec import decode, encode
from sparseflow.core.map_profile import MapCounter, MapProfile, as_map
from sparseflow.core.plan import Measurement, Plan
from sparseflow.engine import calibrate
from sparseflow.engine.calibrate import batches, faster_engine, profile_maps
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.target.targets import not_here, resolve
from sparseflow.errors import CompileError, FormatError, InputError
from sparseflow.kernels.target.cpu import AVX2
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer


class Net(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def maps(self, x: Any) -> list[Any]:
        """What each layer reads."""
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(torch.relu(a - 0.2))).mean((2, 3))
        return [x, torch.relu(a - 0.2), b]

    def forward(self, x: Any) -> Any:
        return self.fc(self.maps(x)[-1])


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def data() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 12, 9, generator=generator) for _ in range(3)]


@pytest.fixture(scope="module")
def profile(net: Net, data: list[Any]) -> MapProfile:
    return profile_maps(import_model(net, (data[0],)), data)


def test_densities_are_those_of_torch(net: Net, data: list[Any], profile: MapProfile) -> None:
    assert [layer.name for layer in profile.layers] == ["first", "second", "fc"]
    assert profile.calls == 3
    for i, layer in enumerate(profile.layers):
        with torch.no_grad():
            maps = torch.cat([net.maps(x)[i] for x in data])
        each = (maps != 0).flatten(1).float().mean(1).numpy()
        assert layer.images == 6
        assert layer.mean == pytest.approx(each.mean(), abs=2e-3)
        assert layer.p10 == pytest.approx(np.quantile(each, 0.1), abs=5e-3)
        assert layer.shape == (2, *maps.shape[1:])


def test_a_profile_survives_json(profile: MapProfile) -> None:
    assert decode(MapProfile, encode(profile)) == profile


def test_the_spatial_structure_is_kept() -> None:
    x = np.zeros((1, 4, 16, 16), np.float32)
    x[:, :2, :4, :] = 1.0
    counter = MapCounter("layer", x.shape)
    counter.add(x)
    found = counter.result()
    assert found.mean == pytest.approx(0.125)
    assert (found.pixels, found.tiles, found.wide_tiles, found.channels) == (0.25, 0.25, 0.5, 0.5)
    assert np.array(found.spatial)[:2].min() == 0.5
    assert np.array(found.spatial)[2:].max() == 0.0
    assert as_map(np.zeros((5, 7), np.float32)).shape == (5, 7, 1, 1)


def test_maps_of_another_shape_are_refused() -> None:
    counter = MapCounter("layer", (1, 2, 3, 4))
    with pytest.raises(FormatError, match=r"layer: a map of shape \(1, 2, 3, 5\)"):
        counter.add(np.zeros((1, 2, 3, 5), np.float32))
    with pytest.raises(FormatError, match="no inputs were counted"):
        counter.result()


def test_no_inputs_or_wrong_ones_are_refused(net: Net, data: list[Any]) -> None:
    imported = import_model(net, (data[0],))
    with pytest.raises(InputError, match="no inputs given"):
        profile_maps(imported, [])
    with pytest.raises(InputError, match="expected"):
        profile_maps(imported, [np.zeros((1, 3, 12, 9), np.float32)])


def test_examples_are_cut_into_batches() -> None:
    data = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert [b[0][:, 0].tolist() for b in batches([data], [(2, 2)], 4)] == [[0, 2], [4, 6]]
    assert [b[0].shape for b in batches([data[:1]], [(3, 2)], 8)] == [(3, 2)]
    with pytest.raises(InputError, match="the model takes"):
        list(batches([data], [(2, 3)], 4))
    with pytest.raises(InputError, match="no examples"):
        list(batches([data[:0]], [(2, 2)], 4))


def test_a_profile_of_another_model_is_refused(profile: MapProfile) -> None:
    with pytest.raises(CompileError, match="profile this model"):
        sparseflow.compile(
            nn.Conv2d(3, 4, 1).eval(), (torch.zeros(1, 3, 4, 4),), measure=False, calibration=profile
        )


def test_compile_takes_inputs_or_a_profile(net: Net, data: list[Any], profile: MapProfile) -> None:
    for calibration in (profile, data):
        engine = sparseflow.compile(net, (data[0],), measure=False, calibration=calibration)
        with torch.no_grad():
            torch.testing.assert_close(engine(data[1]), net(data[1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("with_s", "kept"), [(0.9, True), (0.99, False), (1.1, False)])
def test_the_whole_engine_decides(
    net: Net, data: list[Any], profile: MapProfile, monkeypatch: Any, with_s: float, kept: bool
) -> None:
    indexed = sparseflow.compile(net, (data[0],), measure=False, calibration=profile)
    plain = sparseflow.compile(net, (data[0],), measure=False)

    def measure(engine: Engine, *_inputs: Any, **_how: Any) -> Measurement:
        return Measurement.of([with_s if engine is indexed else 1.0], 1, "machine")

    monkeypatch.setattr(Engine, "measure", measure)
    chosen = faster_engine(indexed, plain, data)
    assert chosen.plan.maps == profile
    assert ("map index left out" in chosen.plan.notes[-1]) is not kept
    assert decode(Plan, encode(chosen.plan)) == chosen.plan
    assert chosen.plan.layers[1].map_density == pytest.approx(profile.layers[1].mean)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_network_without_a_layer_behind_another_is_compiled_with_a_note(layers: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(layers)], torch.nn.Tanh()).eval()
    x = torch.randn(1, 8, 16)
    said: list[str] = []
    engine = sparseflow.compile(model, (x,), measure=False, calibration=[x, x], progress=said.append)
    torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
    assert any("no layer reads another's result" in text for text in said)
    assert engine.plan.maps is not None
    assert len(engine.plan.maps.layers) == layers
    assert any("map index" in note for note in engine.plan.notes)


@pytest.mark.parametrize("shape", [(1, 8, 16), (64, 16)])
def test_operators_between_linear_layers_carry_no_map(shape: tuple[int, ...]) -> None:
    """An activation and a sum that are no part of a layer, on rows of features in lanes."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Any) -> Any:
            y = self.a(x)
            return self.b(torch.nn.functional.relu6(y + torch.relu(self.a(-x)))), y

    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(shape)
    engine = sparseflow.compile(model, (x,), measure=False, calibration=[x, x])
    for found, expected in zip(engine(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_counting_engine_has_the_vectors_of_its_target(
    net: Net, data: list[Any], profile: MapProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine for AVX2 counts with kernels for AVX2, not with those of this machine."""
    haswell = {"kind": "llvm", "mcpu": "haswell"}
    target = resolve(haswell)
    if not_here(target.architecture, target.instruction_sets) is not None:
        pytest.skip("this machine has no AVX2")
    built: list[Any] = []

    def noted(imported: Any, how: Any) -> Engine:
        built.append((imported.mod, how.target))
        return build(imported, how)

    build = calibrate.build
    monkeypatch.setattr(calibrate, "build", noted)
    engine = sparseflow.compile(net, (data[0],), measure=False, target=haswell, calibration=data)
    ((mod, counts),) = built
    layers = [LayerAttrs.of(b.value) for b in Graph(mod).bindings if is_layer(b.value)]
    assert {attrs.name for attrs in layers} == {"first", "second"}
    assert {attrs.workload.vectors for attrs in layers} == {AVX2.vectors}
    assert counts == target
    assert engine.plan.maps is not None
    for found, known in zip(engine.plan.maps.layers, profile.layers, strict=True):
        assert found.mean == pytest.approx(known.mean, abs=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(engine(data[1]), net(data[1]), atol=1e-4, rtol=1e-4)
