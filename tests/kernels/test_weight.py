"""A layer's weight: each form is made once, whatever asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.core import KernelIndex, TapList, parse_sparsify
from sparseflow.engine.sparsify import sparsify
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.weight import LayerWeight


def sparse(shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal(shape) * (random.random(shape) < 0.3)).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 12, 1, 1)])
def test_an_index_and_a_dense_weight_are_the_same(shape: tuple[int, int, int, int]) -> None:
    values = sparse(shape)
    dense, indexed = LayerWeight(values, shape), LayerWeight(TapList().encode(values), shape)
    np.testing.assert_array_equal(indexed.dense, values)
    assert indexed.nonzeros == dense.nonzeros == np.count_nonzero(values)
    for format, filters in ((TapList(), None), (TapList(rows=2), 4), (TapList(rows=4, chunk=2), None)):
        mine, other = dense.index(format, filters), indexed.index(format, filters)
        np.testing.assert_array_equal(mine.decode(), values[:filters])
        for name, array in mine.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])


def test_each_form_is_made_once() -> None:
    values = sparse((8, 4, 3, 3))
    given = TapList().encode(values)
    weight = LayerWeight(given, (8, 4, 3, 3))
    assert weight.index(TapList()) is given
    assert weight.index(TapList(rows=4)) is weight.index(TapList(rows=4), 8)
    assert weight.dense is weight.dense


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(16 * 36, 32)
    ).eval()
    sparsify(model, parse_sparsify("block:4x1@0.8"), include=("stem", "classifier"))
    return model, torch.randn(1, 8, 6, 6)


def test_no_phase_decodes_an_index_and_the_winner_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network()
    decoded: list[KernelIndex] = []
    packed: list[tuple[str, int]] = []
    decode = TapList.decode_arrays

    def noted(self: TapList, index: KernelIndex) -> Any:
        decoded.append(index)
        return decode(self, index)

    monkeypatch.setattr(TapList, "decode_arrays", noted)
    for name, template in TEMPLATES.items():

        def counted(*args: Any, name: str = name, pack: Any = template.pack) -> Any:
            packed.append((name, id(args[2])))
            return pack(*args)

        monkeypatch.setattr(template, "pack", counted)
    engine = sparseflow.compile(model, (x,), measure=False)
    assert {layer.format for layer in engine.plan.layers} == {"tap-list"}
    assert not decoded
    # a layer whose layouts in the network are those it was planned with is packed once, others once more
    assert len(packed) <= 2 * len(engine.plan.layers)
    assert packed.count(packed[-1]) == 1  # a linear layer of one row has no layout
    with torch.no_grad():
        np.testing.assert_allclose(engine(x).numpy(), model(x).numpy(), atol=2e-6)
