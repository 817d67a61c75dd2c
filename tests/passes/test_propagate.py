"""Cutting: results stay, and what cannot matter is gone from the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import sparseflow
from sparseflow import zoo
from sparseflow.core import parse_sparsify
from sparseflow.core.codec import decode, encode
from sparseflow.core.plan import Cut, Plan
from sparseflow.engine.frontends.importer import import_model
from sparseflow.engine.sparsify import sparsify
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.ops.expressions import shape_of
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer, weight_of
from sparseflow.passes.propagate import Propagate, cuts_of

relu = torch.relu


class Residual(nn.Module):
    """A projection and an identity on the way round, a strided block, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 1)
        self.b1, self.b2 = nn.Conv2d(12, 9, 3, 2, 1), nn.Conv2d(9, 16, 3, padding=1)
        self.down = nn.Conv2d(12, 16, 1, 2)
        self.c1, self.c2 = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.stem(x))
        x = relu(self.a2(relu(self.a1(x))) + x)
        x = relu(self.b2(relu(self.b1(x))) + self.down(x))
        x = self.c2(relu(self.c1(x))) + x
        return self.head(x.mean([2, 3]))


class Concat(nn.Module):
    """Branches side by side, pools between, an earlier map joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.mix = nn.Conv2d(11, 7, 3, padding=1)
        self.last = nn.Conv2d(15, 9, 1)
        self.head = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(relu(self.stem(x)), 3, 2, 1)
        y = torch.cat([relu(self.left(x)), torch.sigmoid(self.right(x))], 1)
        y = torch.cat([relu(self.mix(y)), x], 1)
        return self.head(torch.tanh(self.last(nn.functional.avg_pool2d(y, 2))).mean([2, 3]))


class Inverted(nn.Module):
    """MobileNetV2's blocks, and a depthwise convolution of two filters a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.up, self.deep, self.down = (
            nn.Conv2d(8, 24, 1),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24),
            nn.Conv2d(24, 8, 1),
        )
        self.twice, self.out = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(nn.functional.relu6(self.deep(nn.functional.relu6(self.up(x)))))
        return self.head(relu(self.out(nn.functional.hardswish(self.twice(x)))).mean([2, 3]))


class Flat(nn.Module):
    """VGG's way: convolutions, pools, a flattening, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3)
        self.three, self.four, self.head = nn.Linear(40, 20), nn.Linear(20, 18), nn.Linear(18, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(relu(self.two(nn.functional.max_pool2d(relu(self.one(x)), 2))), 2)
        return torch.softmax(self.head(nn.functional.silu(self.four(relu(self.three(x.flatten(1)))))), 1)


class Grouped(nn.Module):
    """Grouped convolutions and a gate on each channel (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.apart = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.mix, self.again = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, 2, 1, groups=3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.apart(relu(self.stem(x))))
        y = relu(self.mix(x + torch.sigmoid(self.excite(relu(self.squeeze(x))))))
        return self.head(relu(self.again(y)).mean([2, 3]))


class Rows(nn.Module):
    """Linear layers of many rows with a residual, which an index cannot pick apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), nn.Linear(144, 12), nn.Linear(12, 144)
        self.three = nn.Linear(144, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.stem(x)).flatten(2)
        return self.three(relu(x + self.two(relu(self.one(x)))))


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concat": Concat,
    "inverted": Inverted,
    "flat": Flat,
    "grouped": Grouped,
    "rows": Rows,
}


def pruned(make: Callable[[], nn.Module], seed: int, filters: float, channels: float) -> nn.Module:
    """Random weights and biases, each filter and each input channel dead with the given probability."""
    torch.manual_seed(seed)
    model, random = make().eval(), np.random.default_rng(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight[random.random(layer.weight.shape[0]) < filters] = 0
                layer.weight[:, random.random(layer.weight.shape[1]) < channels] = 0
                layer.bias.copy_(torch.from_numpy(random.choice([-0.5, 0.0, 0.4, 0.7], len(layer.bias))))
    return model


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def canonical(model: nn.Module, x: torch.Tensor) -> tvm.IRModule:
    return Canonicalise(AVX512)(import_model(model, (x,)).mod)


def weights(mod: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's weight."""
    calls = [b.value for b in Graph(mod).bindings if is_layer(b.value)]
    return {LayerAttrs.of(c).name: weight_of(c).shape for c in calls}


def maps(mod: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's result."""
    return {LayerAttrs.of(b.value).name: shape_of(b.var) for b in Graph(mod).bindings if is_layer(b.value)}


def cut(model: nn.Module) -> tvm.IRModule:
    return Propagate()(canonical(model, image()))


def kill(model: nn.Module, dead: dict[str, list[int]], bias: float = 0.0) -> nn.Module:
    """Clears filters and sets their bias."""
    with torch.no_grad():
        for name, filters in dead.items():
            layer = model.get_submodule(name)
            layer.weight[filters] = 0
            layer.bias[filters] = bias
    return model


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    net=st.sampled_from(sorted(NETS)),
    seed=st.integers(0, 10_000),
    filters=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    channels=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
)
def test_any_dead_set_leaves_the_result(
    net: str, seed: int, filters: float, channels: float, interpret: Any, close: Any
) -> None:
    before = canonical(pruned(NETS[net], seed, filters, channels), image())
    text = before.script(show_meta=False)
    after = Propagate()(before)
    assert before.script(show_meta=False) == text, "the input module changed"
    close(interpret(after, image().numpy()), interpret(before, image().numpy()))
    for name, shape in weights(after).items():
        assert all(a <= b for a, b in zip(shape, weights(before)[name], strict=True)) or shape[2:] == (1, 1)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("filters", "channels"), [(0.5, 0.0), (0.0, 0.5), (0.4, 0.3)])
def test_the_engine_equals_torch(net: str, filters: float, channels: float) -> None:
    model, x = pruned(NETS[net], 7, filters, channels), image()
    with torch.no_grad():
        expected = model(x)
    found = sparseflow.compile(model, (x,), measure=False)(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_nothing_to_cut_leaves_the_module(interpret: Any) -> None:
    before = canonical(fresh(Residual), image())
    after = Propagate()(before)
    tvm.ir.assert_structural_equal(before, after)
    assert cuts_of(after) == ()


def test_dead_filters_and_unread_channels_narrow_weights_and_maps() -> None:
    model = kill(fresh(Flat), {"one": [0, 3], "two": [1, 2], "three": [4]})
    with torch.no_grad():
        model.head.weight[:, [0, 5]] = 0
    found = cut(model)
    # a multiple of 8 of filters can share loads: 18 without 0 and 5 leave 16, 8 without 2 stay 8
    assert weights(found) == {
        "one": (8, 3, 3, 3),
        "two": (8, 8, 3, 3),
        "three": (20, 32),
        "four": (16, 20),
        "head": (6, 16),
    }
    assert maps(found)["two"][:2] == (2, 8)


def test_a_residual_add_holds_the_union_and_the_index_says_what_comes_from_where(same: Any) -> None:
    model = kill(
        fresh(Residual), {"down": list(range(8)), "b2": [0, 1, 2, 3, 12, 13, 14, 15], "c2": [0, 1, 2]}
    )
    before = canonical(model, image())
    after = Propagate()(before)
    same(before, after)
    calls = {LayerAttrs.of(b.value).name: b.value for b in Graph(after).bindings if is_layer(b.value)}
    assert weights(after)["down"] == (8, 12, 1, 1)
    total = LayerAttrs.of(calls["b2"]).workload
    assert (total.filters, total.passed, total.residual_channels) == (12, 4, 8)
    residual, index = calls["b2"].args[3].fields
    assert shape_of(residual)[1] == 8
    # the sum's channels 4 … 11 are computed, 12 … 15 passed; the projection holds 8 … 15
    assert index.value.numpy().tolist() == [-1, -1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7]
    assert weights(after)["c1"] == (8, 12, 1, 1)
    (record,) = [c for c in cuts_of(after) if c.name == "b2"]
    assert (record.filters, record.held, record.added) == ((16, 8), 12, 8)
    assert record.union == "8 + 4 passed, 8 added"


def test_channels_that_both_sides_lack_are_gone(same: Any) -> None:
    model = kill(fresh(Residual), {"down": list(range(8)), "b2": list(range(8)), "c2": list(range(8))})
    before = canonical(model, image())
    after = Propagate()(before)
    same(before, after)
    assert weights(after)["c1"] == (8, 8, 1, 1)
    assert weights(after)["head"] == (5, 8)


def test_a_constant_channel_is_folded_where_the_map_has_no_border(same: Any) -> None:
    model = kill(fresh(Flat), {"one": [1], "two": [0, 1], "three": list(range(12))}, bias=0.7)
    before = canonical(model, image())
    after = Propagate()(before)
    same(before, after)
    assert weights(after)["three"] == (8, 32)
    assert weights(after)["four"] == (18, 8)


def test_constant_channels_before_a_padded_convolution_become_one(same: Any) -> None:
    model = kill(fresh(Residual), {"b1": [0, 1]}, bias=0.5)
    before = canonical(model, image())
    after = Propagate()(before)
    same(before, after)
    assert weights(after)["b2"] == (16, 8, 3, 3)
    assert weights(after)["b1"] == (8, 12, 3, 3)


def test_a_negative_constant_is_gone_after_relu(same: Any) -> None:
    before = canonical(kill(fresh(Residual), {"b1": [4]}, bias=-0.5), image())
    after = Propagate()(before)
    same(before, after)
    assert weights(after)["b2"] == (16, 8, 3, 3)


def test_a_dead_body_leaves_its_way_round(same: Any) -> None:
    model = kill(fresh(Residual), {"a2": list(range(12)), "c2": list(range(16))}, bias=0.25)
    before = canonical(model, image())
    after = Propagate()(before)
    same(before, after)
    assert "a1" not in weights(after)
    assert "c1" not in weights(after)
    assert {c.name: c.filters[1] for c in cuts_of(after)}["a1"] == 0


def test_a_dead_branch_of_a_concatenation_is_gone(same: Any, operators: Any) -> None:
    before = canonical(kill(fresh(Concat), {"left": list(range(6))}), image())
    after = Propagate()(before)
    same(before, after)
    assert "left" not in weights(after)
    assert weights(after)["mix"][1] == 5
    assert operators(after).count("relax.concat") == 1


def test_the_logits_stay_whole(same: Any) -> None:
    before = canonical(kill(fresh(Flat), {"head": [0, 1, 2, 3, 4, 5]}, bias=0.5), image())
    after = Propagate()(before)
    same(before, after)
    assert weights(after)["head"][0] == 6


def test_depthwise_filters_go_with_their_channels() -> None:
    model = fresh(Inverted)
    with torch.no_grad():
        model.down.weight[:, :8] = 0
    found = weights(cut(model))
    assert (found["up"], found["deep"], found["down"]) == ((16, 8, 1, 1), (16, 1, 3, 3), (8, 16, 1, 1))


def test_whole_groups_go() -> None:
    model = fresh(Grouped)
    with torch.no_grad():
        model.head.weight[:, :4] = 0  # the first of three groups
        model.again.weight[4:8, 1:] = 0
    found = weights(cut(model))
    assert found["again"] == (8, 4, 3, 3)
    assert found["mix"][0] == 8


def test_filters_that_share_taps_stay_together() -> None:
    model = fresh(Residual)
    random = np.random.default_rng(0)
    with torch.no_grad():
        blocks = torch.from_numpy(random.random((4, 9, 3, 3)) < 0.2).repeat_interleave(4, 0)
        model.b2.weight *= blocks
        model.c1.weight[:, 5] = 0
        model.c2.weight[5] = 0
        model.c2.bias[5] = 0
        model.head.weight[:, 5] = 0
    assert weights(cut(model))["b2"][0] == 16


FAST_ZOO = {("resnet18", "filter@0.5"), ("mobilenet_v2", "channel@0.5")}
ZOO = [
    pytest.param(name, 32, spec, marks=() if (name, spec) in FAST_ZOO else pytest.mark.slow)
    for name in ("resnet18", "vgg16", "mobilenet_v2")
    for spec in ("filter@0.5", "channel@0.5", "column@0.5")
]


@pytest.mark.parametrize(("name", "size", "spec"), ZOO)
def test_zoo_networks_equal_torch(name: str, size: int, spec: str) -> None:
    model, inputs = zoo.build(name, image_size=size, classes=10)
    sparsify(model, parse_sparsify(spec))
    with torch.no_grad():
        expected = model(*inputs)
    engine = sparseflow.compile(model, inputs, measure=False)
    found = engine(*inputs)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    plan = engine.manifest.plan
    if spec.startswith("filter"):
        assert sum(c.macs[1] for c in plan.cuts) < 0.6 * sum(c.macs[0] for c in plan.cuts)
    assert all(isinstance(c, Cut) for c in plan.cuts)
    assert decode(Plan, encode(plan)) == plan
