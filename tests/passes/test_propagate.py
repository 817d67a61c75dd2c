"""Zeros follow the graph: results stay, weights that cannot matter go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.engine.importer import import_model
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer, weight_of
from sparseflow.passes.propagate import Propagate, removed_weights


class Branches(nn.Module):
    """A residual add whose branches keep different channels, then a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 6, 1)
        self.classifier = nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(self.left(y) + self.right(y))
        y = nn.functional.max_pool2d(torch.relu(self.head(y)), 2)
        return self.classifier(y.flatten(1))


def prepared(dead: dict[str, list[int]]) -> Branches:
    torch.manual_seed(0)
    model = Branches().eval()
    with torch.no_grad():
        for name, filters in dead.items():
            layer = model.get_submodule(name)
            layer.weight[filters] = 0
            layer.bias[filters] = 0
    return model


def nonzeros(mod: object) -> dict[str, int]:
    calls = [b.value for b in Graph(mod).bindings if is_layer(b.value)]
    return {LayerAttrs.of(c).name: int(np.count_nonzero(weight_of(c))) for c in calls}


def run(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    canonical = Canonicalise()(import_model(model, (x,)).mod)
    before = nonzeros(canonical)
    propagated = Propagate()(canonical)
    assert nonzeros(canonical) == before, "the input module changed"
    return before, nonzeros(propagated), removed_weights(propagated)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_dead_filters_take_their_readers_weights_with_them(x: torch.Tensor) -> None:
    before, after, _ = run(prepared({"stem": [1, 4]}), x)
    assert after["left"] == before["left"] - 8 * 2 * 9
    assert after["right"] == before["right"] - 8 * 2
    assert after["head"] == before["head"]


def test_a_residual_add_drops_only_what_both_branches_lack(x: torch.Tensor) -> None:
    before, after, _ = run(prepared({"left": [0, 1, 2], "right": [2, 3]}), x)
    assert after["head"] == before["head"] - 6


def test_unread_channels_lose_their_filters(x: torch.Tensor) -> None:
    model = prepared({})
    with torch.no_grad():
        model.head.weight[:, 5] = 0
        model.classifier.weight.view(5, 6, 16)[:, 3] = 0
    before, after, removed = run(model, x)
    assert after["left"] == before["left"] - 8 * 9
    assert after["right"] == before["right"] - 8
    assert after["head"] == before["head"] - 7
    assert removed == {"left": 72, "right": 8, "head": 7}


def test_a_dead_filter_with_a_positive_bias_is_no_zero(x: torch.Tensor) -> None:
    model = prepared({"stem": [1]})
    with torch.no_grad():
        model.stem.bias[1] = 0.5
    before, after, _ = run(model, x)
    assert after == before


def test_a_negative_bias_before_relu_is(x: torch.Tensor) -> None:
    model = prepared({"stem": [1]})
    with torch.no_grad():
        model.stem.bias[1] = -0.5
    before, after, _ = run(model, x)
    assert after["right"] == before["right"] - 8


@pytest.mark.parametrize(
    "dead", [{"stem": [0, 7]}, {"left": [1, 2], "right": [1, 5], "head": [0]}, {"head": range(6)}]
)
def test_the_engine_equals_torch(dead: dict[str, list[int]], x: torch.Tensor) -> None:
    model = prepared({k: list(v) for k, v in dead.items()})
    with torch.no_grad():
        expected = model(x)
    found = sparseflow.compile(model, (x,), measure=False)(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
