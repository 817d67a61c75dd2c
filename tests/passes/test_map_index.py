"""Maps that carry their index: tuples in the IR, engines equal to torch on both sides of the density switch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.engine.calibrate import profile_maps
from sparseflow.engine.frontends.importer import import_model
from sparseflow.passes import map_choice


def conv(channels: int, filters: int, size: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, size, padding=size // 2, **more)


class Chain(nn.Module):
    """A stem and three layers, one of them strided, one 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 24), conv(24, 40), conv(40, 72, stride=2), conv(72, 20, 1)])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Residual(nn.Module):
    """Two blocks with a shortcut, a pool before and a mean behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 32), conv(32, 32), conv(32, 32)
        self.c, self.short, self.fc = conv(32, 64, stride=2), conv(32, 64, 1, stride=2), nn.Linear(64, 5)

    def forward(self, x: Any) -> Any:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = torch.relu(self.c(x) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    """Branches that are joined, and a sum of maps that no layer takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last = conv(3, 16), conv(16, 24), conv(16, 40, 1), conv(64, 16)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        joined = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        y = torch.relu(self.last(joined))
        return torch.relu(y + x), y


MODELS: dict[str, Callable[[], nn.Module]] = {"chain": Chain, "residual": Residual, "concat": Concat}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every operator that can works on indexed maps, whatever the times."""

    def all_of(steps: Any, _edges: Any, _plain_reads: Any = ()) -> frozenset[Any]:
        return frozenset(name for name, step in steps.items() if math.isfinite(step.indexed_s))

    monkeypatch.setattr(map_choice, "choose_indexed", all_of)
    monkeypatch.setattr(map_choice, "MARGIN", -math.inf)
    monkeypatch.setattr(map_choice, "BOUND", math.inf)
    return


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / max(1.0, math.sqrt(p[0].numel())) - (0.1 if p.ndim == 1 else 0.0))
    return model


def _inputs(batch: int, size: tuple[int, int] = (13, 18), seed: int = 0) -> Any:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def _engine(model: nn.Module, x: Any, threads: int = 1, dump: Any = None) -> Any:
    imported = import_model(model, (x,))
    profile = profile_maps(imported, [x]).claimed(0.3)
    return sparseflow.compile(imported, threads=threads, measure=False, calibration=profile, dump=dump)


def _agree(engine: Any, model: nn.Module, x: Any) -> None:
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(engine(x), expected, atol=2e-4, rtol=1e-4)


CASES = [
    pytest.param(name, batch, threads, marks=() if batch + threads in (2, 5) else pytest.mark.slow)
    for name in MODELS
    for batch in (1, 3)
    for threads in (1, 2)
]


@pytest.mark.parametrize(("name", "batch", "threads"), CASES)
@pytest.mark.usefixtures("everywhere")
def test_engines_equal_torch(name: str, batch: int, threads: int) -> None:
    model, x = _model(name), _inputs(batch)
    engine = _engine(model, x, threads)
    assert any(layer.map_format for layer in engine.plan.layers)
    _agree(engine, model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "concat"])
@pytest.mark.usefixtures("everywhere")
def test_a_map_denser_than_calibrated_takes_the_plain_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = _model(name), _inputs(2)
    monkeypatch.setattr(map_choice.Indexed, "limit", property(lambda found: found.elements // 3))
    engine = _engine(model, x)
    assert all(abs(layer.map_switch - 1 / 3) < 1e-2 for layer in engine.plan.layers if layer.map_format)
    _agree(engine, model, x)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 3.0  # nearly no zeros are left
    dense = _engine(model, x)
    _agree(dense, model, x)


@pytest.mark.usefixtures("everywhere")
def test_the_switch_goes_by_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _model("chain"), _inputs(1)
    for limit in (0, 1 << 30):
        monkeypatch.setattr(map_choice.Indexed, "limit", property(lambda _found, limit=limit: limit))
        _agree(_engine(model, x), model, x)


@pytest.mark.usefixtures("everywhere")
def test_tuples_stand_in_the_ir(tmp_path: Any) -> None:
    model, x = _model("residual"), _inputs(1)
    _engine(model, x, dump=tmp_path)
    text = (tmp_path / "plan.py").read_text()
    assert text.count("sparseflow.index_map") == 1  # of the stem's result; all others come from producers
    assert "sparseflow.dense_map" not in text
    assert "sparseflow.map_op" in text
    assert any("sparseflow.map_op" in line and '"mean"' in line for line in text.splitlines())
    layers = [line for line in text.splitlines() if "sparseflow.conv2d" in line]
    assert sum("R.Tuple(R.Tensor" in line and "uint64" in line for line in layers) == len(layers) - 1


def test_nothing_changes_without_calibration_or_gain() -> None:
    model, x = _model("chain"), _inputs(1)
    imported = import_model(model, (x,))
    plain = sparseflow.compile(imported, measure=False)
    assert not any(layer.map_format or layer.map_note for layer in plain.plan.layers)
    profile = profile_maps(imported, [x])
    engine = sparseflow.compile(imported, measure=False, calibration=profile.claimed(0.69))
    assert not any(layer.map_format for layer in engine.plan.layers)
    assert all(layer.map_note.startswith("no index: ") for layer in engine.plan.layers)
    assert any(note.startswith(("map index", "no index")) for note in engine.plan.notes)


@pytest.mark.usefixtures("everywhere")
def test_an_engine_is_saved_loaded_and_profiled(tmp_path: Any) -> None:
    model, x = _model("residual"), _inputs(1)
    engine = _engine(model, x)
    loaded = sparseflow.Engine.load(engine.save(tmp_path / "net.engine"))
    assert loaded.plan == engine.plan
    _agree(loaded, model, x)
    names = [operator.name for operator in engine.profile(x.numpy(), repeats=1)]
    assert {"a", "b", "c", "short"} <= set(names)
    np.testing.assert_array_equal(loaded(x.numpy()), engine(x.numpy()))


def test_a_dense_map_is_named_as_the_reason() -> None:
    model, x = Chain().eval(), torch.randn(1, 3, 12, 12)
    imported = import_model(model, (x,))
    dense = profile_maps(imported, [x.numpy()]).claimed(0.9)
    engine = sparseflow.compile(imported, measure=False, calibration=dense)
    image, *others = engine.plan.layers
    assert (
        image.map_note
        == "no index: no zeros of its input are known: it holds none, or nothing was calibrated"
    )
    assert all("map density 0.90 is above" in layer.map_note for layer in others)
