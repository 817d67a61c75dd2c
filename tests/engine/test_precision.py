"""Engines that multiply in bfloat16: near torch, in float32 where no kernel is, refused where that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow
from sparseflow.core import BFLOAT16
from sparseflow.errors import CompileError
from sparseflow.kernels.lane.direct import Direct
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.workload import Workload
from tests.engine.test_compile import NETS, _model
from tests.kernels.conftest import NEEDS_PAIRS, NEEDS_QUADS

VARIANTS = [("dense", 2, 1), ("block:4x2", 1, 2)]


@NEEDS_PAIRS
@pytest.mark.parametrize(("structure", "batch", "threads"), VARIANTS)
@pytest.mark.parametrize("name", NETS)
def test_networks_are_near_torch(name: str, structure: str, batch: int, threads: int) -> None:
    model = _model(name, structure)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((batch, *NETS[name][1])).astype(np.float32))
    engine = sparseflow.compile(model, (x,), measure=False, threads=threads, precision="bf16")
    expected = model(x).detach()
    assert float((engine(x) - expected).abs().max() / expected.abs().max()) < 0.03
    narrow = [layer for layer in engine.plan.layers if layer.element == "bfloat16"]
    assert len(narrow) > len(engine.plan.layers) / 3
    assert engine.plan.precision == "bf16"


@pytest.mark.parametrize(
    ("precision", "element", "share"),
    [
        pytest.param("bf16", "bfloat16", 2, marks=NEEDS_PAIRS),
        pytest.param("int8", "uint8", 4, marks=NEEDS_QUADS),
    ],
)
def test_an_engine_is_saved_and_loaded_and_its_weights_take_a_part_of_the_bytes(
    precision: str, element: str, share: int, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.MaxPool2d(2)).eval()
    x = torch.randn(1, 8, 20, 20)
    ranges = {"calibration": [(x,)]} if precision == "int8" else {}
    engine = sparseflow.compile(model, (x,), measure=False, precision=precision, **ranges)
    plain = sparseflow.compile(model, (x,), measure=False)
    loaded = sparseflow.Engine.load(engine.save(tmp_path / "net.engine"))
    np.testing.assert_array_equal(loaded(x.numpy()), engine(x.numpy()))
    assert loaded.plan == engine.plan
    for narrow, wide in zip(engine.plan.layers, plain.plan.layers, strict=True):
        assert (narrow.element, wide.element) == (element, "float32")
        assert narrow.value_bytes == wide.value_bytes // share


@NEEDS_PAIRS
def test_blocks_of_two_channels_leave_out_what_they_prune() -> None:
    model = _model("resnet", "block:4x2")
    x = torch.randn(1, *NETS["resnet"][1])
    engine = sparseflow.compile(model, (x,), measure=False, precision="bf16")
    layer = next(layer for layer in engine.plan.layers if layer.chosen.template == "taps")
    assert layer.format == "tap-list"
    assert layer.tiles_computed < 0.3 * layer.tiles_total


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int7"}, r"precision='int7': allowed: fp32, bf16"),
        ({"precision": "bf16", "target": "avx2"}, r"target avx2 has no instruction that multiplies bfloat16"),
        ({"precision": "bf16", "target": "neon"}, r"target neon has no instruction that multiplies bfloat16"),
    ],
)
def test_what_cannot_be_is_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        sparseflow.compile(nn.Linear(8, 8), (torch.randn(1, 8),), measure=False, **arguments)


@NEEDS_PAIRS
def test_an_index_of_maps_and_bfloat16_exclude_each_other() -> None:
    x = torch.randn(1, 3, 12, 12)
    with pytest.raises(CompileError, match=r"only float32 maps carry an index"):
        sparseflow.compile(
            nn.Conv2d(3, 8, 3), (x,), measure=False, precision="bf16", calibration=[(x.numpy(),)]
        )


@NEEDS_PAIRS
def test_a_layer_that_float32_computes_faster_stays_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ).eval()
    x = torch.randn(1, 8, 40, 40)
    predicted = Direct.predict_cycles

    def slow_pairs(self: Direct, workload: Workload, candidate: Candidate) -> float:
        much = 1e9 if workload.maps == BFLOAT16 and workload.kernel_size == (1, 1) else 0.0
        return predicted(self, workload, candidate) + much

    monkeypatch.setattr(Direct, "predict_cycles", slow_pairs)
    engine = sparseflow.compile(model, (x,), measure=False, precision="bf16")
    assert [layer.element for layer in engine.plan.layers] == ["bfloat16", "float32", "bfloat16"]
    expected = model(x).detach()
    assert float((engine(x) - expected).abs().max() / expected.abs().max()) < 0.02
