"""The contract of fused activations: however a model writes one, the layer before it computes it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import sparseflow
from sparseflow.core.activations import fused
from sparseflow.engine.frontends.importer import import_model
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.ops.expressions import op_name
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer

NAN, INF = float("nan"), float("inf")
NAMES = [name for name, activation in fused().items() if activation.torch]


class Between(torch.nn.Module):
    """An activation between convolutions that pass on what they read."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.function = getattr(torch.nn.functional, name)
        self.before, self.after = (torch.nn.Conv2d(channels, channels, 1, groups=channels) for _ in range(2))
        for conv in (self.before, self.after):
            torch.nn.init.ones_(conv.weight)
            torch.nn.init.zeros_(conv.bias)

    def forward(self, x: Any) -> Any:
        return self.after(self.function(self.before(x)))


def _onnx(model: torch.nn.Module, x: torch.Tensor) -> Any:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, dynamo=False, opset_version=18)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_the_layer_before_takes_it_in(name: str, kind: str) -> None:
    model, x = Between(name, 4).eval(), torch.ones(1, 4, 3, 3)
    imported = import_model(model, (x,)) if kind == "torch" else import_model(_onnx(model, x))
    values = [b.value for b in Graph(Canonicalise(AVX512)(imported.mod)).bindings]
    assert [LayerAttrs.of(v).workload.activation for v in values if is_layer(v)] == [name, "none"]
    assert {op_name(v) for v in values if not is_layer(v)} <= {""}  # names of results


@pytest.mark.parametrize("name", NAMES)
def test_it_equals_torch_also_where_numbers_are_awkward(name: str) -> None:
    x = 4.0 * torch.randn(1, 16, 9, 9)
    x[0, 0, 4, 4], x[0, 1], x[0, 3, 1] = (
        NAN,
        NAN,
        torch.tensor([0.0, -0.0, 1e30, -1e30, 90.0, -90.0, 6.0, -3.0, 3.0]),
    )
    x[0, 2, 0, 0] = INF if name != "gelu" else 1.0  # of which torch's own makes NaN
    model = Between(name, 16).eval()
    with torch.inference_mode():
        expected = model(x).numpy()
    found = sparseflow.compile(model, (x,), measure=False)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_mish_skips_its_zeros_behind_a_sparse_layer() -> None:
    """Half of the filters are zero: their channels are mish(bias), constants that join the next layer's bias."""
    first, second = torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 1)
    torch.nn.init.zeros_(first.weight[::2])
    model, x = torch.nn.Sequential(first, torch.nn.Mish(), second).eval(), torch.randn(1, 4, 9, 9)
    engine = sparseflow.compile(model, (x,), measure=False)
    with torch.inference_mode():
        np.testing.assert_allclose(engine(x), model(x).numpy(), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in engine.plan.layers] == ["0", "2"]
    assert [cut.filters for cut in engine.plan.cuts] == [(8, 4), (4, 4)]
