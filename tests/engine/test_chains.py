"""Chains of activation functions: compiled in bounded time, equal to torch, also at NaN and at infinity."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow

LIMIT_S = 20.0
"""Longest that one chain may compile; each takes about 0.4 s on an idle machine."""


class Function(nn.Module):
    """A function of ``torch`` as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Any) -> Any:
        return getattr(torch, self.name)(x)


ACTIVATIONS: dict[str, nn.Module] = {
    "softplus": nn.Softplus(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(),
    "hardswish": nn.Hardswish(),
    "logsigmoid": nn.LogSigmoid(),
    **{name: Function(name) for name in ("exp", "log", "sqrt", "erf")},
}


def check(layers: Iterable[nn.Module], x: Any, tolerance: float = 2e-5) -> None:
    """Compiles the chain in time and compares it with torch, NaN included."""
    model = nn.Sequential(*layers).eval()
    begun = time.perf_counter()
    engine = sparseflow.compile(model, (x,), measure=False)
    assert time.perf_counter() - begun < LIMIT_S
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(engine(x), expected, rtol=tolerance, atol=tolerance)


def _input(*shape: int) -> Any:
    values = np.random.default_rng(5).normal(size=shape).astype("float32")
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 8, 1), nn.Softplus(), nn.Tanh()),
        (nn.Conv2d(3, 8, 1), nn.Mish()),
        (nn.Mish(), nn.Mish(), nn.GELU(), nn.Mish()),
    ],
    ids=["softplus-tanh", "mish", "four"],
)
def test_nested_functions_compile_in_bounded_time(layers: tuple[nn.Module, ...]) -> None:
    check(layers, _input(1, 3, 9, 13))


def test_a_guarded_chain_compiles_in_bounded_time() -> None:
    """Functions in the branches of a condition, where a padding or a concatenation puts them."""

    class Guarded(nn.Module):
        def forward(self, x: Any) -> Any:
            y = torch.tanh(nn.functional.softplus(x))
            return torch.cat([nn.functional.pad(y, (1, 2)), torch.sigmoid(torch.tanh(x[..., :3]))], -1)

    check([Guarded()], _input(3, 37))


@pytest.mark.slow
@pytest.mark.parametrize("first", ACTIVATIONS)
def test_pairs_compile_in_bounded_time(first: str) -> None:
    for second in ACTIVATIONS:
        check([ACTIVATIONS[first], ACTIVATIONS[second]], _input(3, 53), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("first", ACTIVATIONS)
def test_triples_compile_in_bounded_time(first: str) -> None:
    costly = ("softplus", "tanh", "mish", "gelu", "logsigmoid", "erf")
    for second, third in itertools.product(costly, costly):
        check([ACTIVATIONS[name] for name in (first, second, third)], _input(3, 53), 1e-4)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "elu"])
def test_limits_equal_torch(name: str) -> None:
    inf = float("inf")
    ends = [] if name == "gelu" else [inf]  # of which torch's vector code makes NaN
    x = torch.tensor([[-inf, *ends, float("nan"), 0.0, -0.0, 1e30, -1e30, 100.0, -100.0, 30.0, -30.0] * 3])
    check([ACTIVATIONS[name]], x, 1e-6)
