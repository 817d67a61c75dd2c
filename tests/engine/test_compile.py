"""Whole small networks from torch to the engine, against torch; and what the compiler refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax

import sparseflow
from sparseflow.core import parse_structure
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.target.targets import host_target
from sparseflow.errors import CompileError

Tensor = Any


def _conv_bn(channels: int, filters: int, size: int = 3, **more: Any) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False, **more)
    return nn.Sequential(conv, nn.BatchNorm2d(filters))


class ResNet(nn.Module):
    """Stem, pool, a plain block and one that halves the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = _conv_bn(3, 16, 7, stride=2), nn.MaxPool2d(3, 2, 1)
        self.a, self.b = _conv_bn(16, 16), _conv_bn(16, 16)
        self.c, self.d, self.down = (
            _conv_bn(16, 24, stride=2),
            _conv_bn(24, 24),
            _conv_bn(16, 24, 1, stride=2),
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = torch.relu(self.d(torch.relu(self.c(x))) + self.down(x))
        return self.head(x.mean((2, 3)))


class MobileNet(nn.Module):
    """Inverted bottlenecks: relu6, depthwise, a residual without activation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 8, stride=2)
        self.expand, self.deep, self.project = (
            _conv_bn(8, 32, 1),
            _conv_bn(32, 32, groups=32),
            _conv_bn(32, 8, 1),
        )
        self.expand2, self.deep2 = _conv_bn(8, 32, 1), _conv_bn(32, 32, 5, groups=32, stride=2)
        self.project2, self.head = _conv_bn(32, 20, 1), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.relu6(self.stem(x))
        x = x + self.project(f.relu6(self.deep(f.relu6(self.expand(x)))))
        x = self.project2(f.hardswish(self.deep2(f.hardswish(self.expand2(x)))))
        return self.head(f.adaptive_avg_pool2d(x, 1).flatten(1))


class Vgg(nn.Module):
    """Convolutions, pools, a flattened map, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(16, 16, 3), nn.AvgPool2d(2, count_include_pad=False),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(40), nn.GELU(), nn.Linear(40, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class SqueezeExcite(nn.Module):
    """A sigmoid gate over channels and a SiLU, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = _conv_bn(3, 16), _conv_bn(16, 12, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        gate = torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x * gate)


class Inception(nn.Module):
    """Branches of unequal kernels and a pool, joined, then max-pooled with values of either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 10, 5, padding=2)
        self.wide, self.tall = (
            nn.Conv2d(8, 4, (1, 7), padding=(0, 3)),
            nn.Conv2d(4, 4, (7, 1), padding=(3, 0)),
        )
        self.pool, self.last = nn.AvgPool2d(3, 1, 1), nn.Conv2d(28, 9, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = [self.a(x), torch.relu(self.b(x)), self.tall(self.wide(x)), self.pool(x)]
        return self.last(nn.functional.max_pool2d(torch.cat(parts, 1), 3, 2, 1))


class Transformer(nn.Module):
    """Attention and a feed-forward network over 13 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape

        def heads(t: Tensor) -> Tensor:
            return t.reshape(batch, tokens, 4, 8).transpose(1, 2)

        y = nn.functional.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        x = self.norm1(x + self.o(y.transpose(1, 2).reshape(batch, tokens, 32)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (ResNet, (3, 33, 30)),
    "mobilenet": (MobileNet, (3, 32, 32)),
    "vgg": (Vgg, (3, 29, 29)),
    "squeeze-excite": (SqueezeExcite, (3, 15, 17)),
    "inception": (Inception, (3, 19, 21)),
    "transformer": (Transformer, (13, 32)),
}
VARIANTS = [("dense", 1, 1), ("unstructured", 2, 1), ("block:4x1", 1, 2)]
CASES = [
    pytest.param(name, *variant, marks=[] if i % 3 == j else pytest.mark.slow)
    for i, name in enumerate(NETS)
    for j, variant in enumerate(VARIANTS)
]


@functools.cache
def _model(name: str, structure: str) -> nn.Module:
    """The network with running statistics, its layers with eight filters or more pruned to one tenth."""
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = make()
    model(torch.randn(4, *shape))  # statistics, and the shapes of lazy layers
    model.eval()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if structure == "dense" or weight is None or weight.ndim < 2 or len(weight) < 8:
            continue
        mask = parse_structure(structure).mask(np.abs(weight.detach().numpy()), 0.1)
        with torch.no_grad():
            weight *= torch.from_numpy(mask.keep)
    return model


@pytest.mark.parametrize(("name", "structure", "batch", "threads"), CASES)
def test_networks_equal_torch(name: str, structure: str, batch: int, threads: int) -> None:
    model, x = _model(name, structure), torch.randn(batch, *NETS[name][1])
    engine = sparseflow.compile(model, (x,), threads=threads, measure=False)
    with torch.no_grad():
        expected = model(x)
    error = (engine(x) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(engine.plan.layers) == len(layers)
    sparse = [layer for layer in engine.plan.layers if layer.format != "dense"]
    assert bool(sparse) == (structure != "dense")


def test_a_measured_engine_is_right_and_the_second_one_comes_from_the_cache(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    x, told = torch.randn(1, 3, 8, 8), []
    engine = sparseflow.compile(model, (x,), progress=told.append)
    with torch.no_grad():
        np.testing.assert_allclose(engine(x), model(x), atol=1e-5)
    assert sum(t.startswith("measure") for t in told) == 2
    assert engine.plan.measured
    assert all(c.measured for layer in engine.plan.layers for c in layer.candidates)
    again: list[str] = []
    second = sparseflow.compile(model, (x,), progress=again.append)
    assert not any(t.startswith("measure") for t in again)
    assert second.plan == engine.plan


def test_the_module_and_its_import_are_not_changed() -> None:
    model, x = _model("squeeze-excite", "unstructured"), torch.randn(1, 3, 15, 17)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    imported = import_model(model, (x,))
    text = imported.mod.script(show_meta=False)
    first = sparseflow.compile(imported, measure=False)(x)
    assert imported.mod.script(show_meta=False) == text
    torch.testing.assert_close(sparseflow.compile(imported, measure=False)(x), first, rtol=0, atol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_every_phase_can_be_dumped(tmp_path: Path) -> None:
    told: list[str] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    folder = tmp_path / "ir"
    x = (torch.randn(1, 3, 6, 6),)
    engine = sparseflow.compile(model, x, measure=False, dump=folder, progress=told.append, sparsify="label")
    phases = [p.stem for p in folder.iterdir()]
    assert {"canonicalise", "index", "plan", "lower", "finish"} <= set(phases)
    assert set(phases) < set(told)
    assert "sparseflow.conv2d" in (folder / "canonicalise.py").read_text()
    assert "call_tir" in (folder / "lower.py").read_text()
    assert engine.plan.sparsify == "label"
    assert engine.plan.target == str(host_target())


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(threads: int) -> None:
    with pytest.raises(CompileError, match=f"threads={threads}"):
        sparseflow.compile(nn.ReLU(), (torch.ones(2),), threads=threads)


@pytest.mark.parametrize(
    "target", [{"kind": "abacus"}, {}, {"kind": "llvm", "mcpu": 3}, {"kind": "llvm", "wheels": 4}]
)
def test_unknown_targets_are_one_clear_line(target: dict[str, Any]) -> None:
    with pytest.raises(CompileError, match="target") as caught:
        sparseflow.compile(nn.ReLU().eval(), (torch.ones(2, 2),), target=target, measure=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_failure_inside_tvm_is_one_clear_line(error: type[Exception], monkeypatch: Any) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise error("Traceback\n  somewhere\nno lowering for relax.riddle")

    monkeypatch.setattr(relax, "build", refuse)
    with pytest.raises(CompileError, match=r"no lowering for relax\.riddle") as caught:
        sparseflow.compile(nn.ReLU().eval(), (torch.ones(2, 2),), measure=False)
    assert "\n" not in str(caught.value)


def test_networks_without_layers_compile() -> None:
    x = torch.randn(3, 5)
    engine = sparseflow.compile(nn.Sequential(nn.ReLU(), nn.Sigmoid()).eval(), (x,), measure=False)
    torch.testing.assert_close(engine(x), torch.sigmoid(torch.relu(x)))
    assert engine.plan.layers == ()
    assert engine.profile(x, repeats=2)


class Passes(nn.Module):
    """Gives its input back beside a result that does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x + 1, self.constant * 2


def test_inputs_and_constants_may_be_results() -> None:
    x = torch.randn(2, 3)
    engine = sparseflow.compile(Passes().eval(), (x,), measure=False)
    same, more, constant = engine(x)
    torch.testing.assert_close(same, x)
    torch.testing.assert_close(more, x + 1)
    torch.testing.assert_close(constant, torch.arange(6.0).reshape(2, 3) * 2)


def test_tokens_are_looked_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 20)).eval()
    tokens = torch.randint(0, 11, (2, 7))
    engine = sparseflow.compile(model, (tokens,), measure=False)
    assert engine.inputs[0].dtype == "int64"
    with torch.no_grad():
        np.testing.assert_allclose(engine(tokens.numpy()), model(tokens).numpy(), atol=1e-5)


def test_channels_are_followed_through_a_concatenation_with_a_constant() -> None:
    class Joined(nn.Module):
        """Two dead filters behind a constant part of the same tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(12, 5, 1)
            self.register_buffer("constant", torch.rand(1, 4, 9, 9) + 1.0)
            with torch.no_grad():
                self.first.weight[[2, 5]] = 0.0
                self.first.bias[[2, 5]] = torch.tensor([0.7, -1.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.cat([self.constant, torch.relu(self.first(x))], 1))

    torch.manual_seed(4)
    model, x = Joined().eval(), torch.randn(1, 3, 9, 9)
    engine = sparseflow.compile(model, (x,), measure=False)
    torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
