"""Linear layers of few rows, whose lanes are output features or non-zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparseflow.kernels.gemv.few_rows import FewRowsDense, FewRowsSparse
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload, covers_of

RNG = np.random.default_rng(6)


def _workload(rows: int, channels: int, filters: int, **more: Any) -> Workload:
    return Workload("linear", 1, channels, 1, rows, filters, target=AVX512, **more)


@pytest.mark.parametrize("template", [FewRowsDense(), FewRowsSparse()])
def test_every_size_of_the_last_vector(template: Any, compile_kernels: Any, dense_reference: Any) -> None:
    functions, runs = {}, []
    for filters in (1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 150):
        rows = 1 + filters % 11
        weight = RNG.standard_normal((filters, 29, 1, 1)).astype(np.float32)
        weight[RNG.random(weight.shape) < 0.8] = 0.0
        w = _workload(
            rows, 29, filters, bias=True, residual=True, activation="relu", covers=covers_of(weight)
        )
        assert template.rejects(w) is None
        for candidate in template.candidates(w):
            name = f"k{len(runs)}"
            functions[name] = template.build(w, candidate, Layouts(), name)
            runs.append((name, w, candidate, weight))
    kernels = compile_kernels(functions)
    for name, w, candidate, weight in runs:
        x = RNG.standard_normal((w.width, w.channels)).astype(np.float32)
        bias = RNG.standard_normal(w.filters).astype(np.float32)
        residual = RNG.standard_normal((w.width, w.filters)).astype(np.float32)
        expected = dense_reference(
            w,
            x.T.reshape(1, w.channels, 1, w.width),
            weight,
            bias,
            residual.T.reshape(1, w.filters, 1, w.width),
        )
        packed = template.pack(w, candidate, LayerWeight(weight, w.weight_shape), Layouts())
        y = kernels(name, [x, *packed.values(), bias, residual], (w.width, w.filters))
        np.testing.assert_allclose(y, expected[0, :, 0].T, atol=1e-5, err_msg=str(candidate))


@pytest.mark.parametrize(("rows", "unroll"), [(1, 8), (2, 4), (4, 8)])
def test_padded_rows_hold_whole_groups_and_every_weight(rows: int, unroll: int) -> None:
    weight = RNG.standard_normal((8, 50)).astype(np.float32)
    weight[RNG.random(weight.shape) < 0.5] = 0.0
    weight[4:] = 0.0
    w = _workload(1, 50, 8, covers=covers_of(weight))
    candidate = Candidate("few-rows-taps", {"R": rows, "U": unroll})
    packed = FewRowsSparse().pack(w, candidate, LayerWeight(weight, w.weight_shape), Layouts())
    assert (packed["indptr"] % unroll == 0).all()
    assert packed["indptr"][-1] == packed["indptr"][4 // rows]
    assert packed["indices"].dtype == np.uint16
    data = packed["data"].reshape(-1, rows)
    for block in range(8 // rows):
        part = slice(packed["indptr"][block], packed["indptr"][block + 1])
        found = np.zeros((50, rows), np.float32)
        np.add.at(found, packed["indices"][part], data[part])
        np.testing.assert_array_equal(found.T, weight[block * rows : (block + 1) * rows])


def test_rejections_name_the_reason() -> None:
    conv = Workload("conv2d", 1, 8, 4, 4, 32, covers=((1, 0.1),), target=AVX512)
    assert "linear layers only" in str(FewRowsDense().rejects(conv))
    assert "linear layers only" in str(FewRowsSparse().rejects(conv))
    many = _workload(64, 8, 32, covers=((1, 0.1),))
    assert "64 rows" in str(FewRowsDense().rejects(many))
    dense = _workload(1, 8, 32)
    assert "density 1.00" in str(FewRowsSparse().rejects(dense))


def test_more_rows_are_predicted_to_take_longer() -> None:
    for template in (FewRowsDense(), FewRowsSparse()):
        few, many = (
            _workload(n, 512, 256, covers=tuple((r, min(1.0, 0.1 * r)) for r in (1, 2, 4, 8, 16)))
            for n in (1, 24)
        )
        times = [template.predict_cycles(w, template.candidates(w)[0]) for w in (few, many)]
        assert times[0] < times[1]
        halved = template.predict_cycles(replace(few, threads=2), template.candidates(few)[0])
        assert halved == pytest.approx(times[0] / 2)
