"""Recurrent layers, which become one chain of operators for each step: compiled in bounded time, equal to torch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow

LIMIT_S = 60.0
"""Longest that 50 steps may compile; they take about 12 s on an idle machine."""


class Outputs(nn.Module):
    """All outputs of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


def check(layer: nn.Module, steps: int) -> float:
    """Seconds to compile a layer whose outputs equal torch's."""
    torch.manual_seed(0)
    model, x = Outputs(layer).eval(), torch.randn(1, steps, 32)
    begun = time.perf_counter()
    engine = sparseflow.compile(model, (x,), measure=False)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        np.testing.assert_allclose(engine(x), model(x).numpy(), atol=2e-6)
    return seconds


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_equal_torch(kind: str) -> None:
    assert check(getattr(nn, kind)(32, 24, batch_first=True), 5) < LIMIT_S


def test_layers_and_directions() -> None:
    check(nn.LSTM(32, 16, num_layers=2, bidirectional=True, batch_first=True), 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_fifty_steps_compile_in_bounded_time(kind: str) -> None:
    assert check(getattr(nn, kind)(32, 64, batch_first=True), 50) < LIMIT_S


def test_kernels_with_hundreds_of_arguments_compile_in_bounded_time() -> None:
    """TVM's checks of 280 arguments took LLVM more than half a minute."""

    class Parts(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat(torch.exp(x).split(1)[::-1])

    x = torch.randn(280, 3)
    begun = time.perf_counter()
    engine = sparseflow.compile(Parts().eval(), (x,), measure=False)
    assert time.perf_counter() - begun < 25.0
    np.testing.assert_allclose(engine(x), x.exp().numpy()[::-1], rtol=1e-6)
