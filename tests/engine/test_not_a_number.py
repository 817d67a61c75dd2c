"""NaN and the infinities in activations and pools, as docs/compiler.md says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import sparseflow

NAN, INF = float("nan"), float("inf")
AS_TORCH = {
    "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(-1, 2),
    "clamp_min": lambda x: x.clamp(min=0.5), "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "silu": F.silu,
    "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "celu": lambda x: F.celu(x, 2.0),
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "softplus": F.softplus,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "where": lambda x: torch.where(x > 0.5, x, 0.0), "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
}  # fmt: skip


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", AS_TORCH)
def test_operators_of_their_own(name: str) -> None:
    x = torch.tensor([NAN, INF, -INF, 1.0, -1.0, 0.0, 7.0, 0.25]).repeat(5)
    model = Function(AS_TORCH[name]).eval()
    torch.testing.assert_close(
        sparseflow.compile(model, (x,), measure=False)(x), model(x), equal_nan=True, rtol=1e-5, atol=1e-6
    )


def test_a_weight_that_is_not_a_number_stays_visible() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[3, 2, 1, 1] = NAN
    x = torch.randn(1, 8, 9, 9)
    found = sparseflow.compile(model, (x,), measure=False)(x)
    assert found[0, 3].isnan().all()
    assert found.isnan().sum() == 81
