"""Index and PlanKernels: weights with zeros become tuples of index tensors, every layer gets a kernel and a record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.core import parse_structure
from sparseflow.core.codec import decode, encode
from sparseflow.core.formats import TapList
from sparseflow.core.plan import Plan
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.tuning.selector import Choice, Selector
from sparseflow.kernels.weight import LayerWeight
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.index import Index
from sparseflow.passes.ops import LayerAttrs, constant, constant_name, is_layer, weight_of
from sparseflow.passes.plan import PlanKernels, describe, plan_of

op = relax.op
RNG = np.random.default_rng(0)


def _pruned(shape: tuple[int, ...], text: str, density: float) -> np.ndarray:
    weight = RNG.standard_normal(shape).astype(np.float32)
    if text == "dense":
        return weight
    return weight * parse_structure(text).mask(np.abs(weight), density).keep


@pytest.fixture
def canonical(build: Any) -> Any:
    """``canonical(weight)``: a canonical module with one layer, called ``layer``, of that weight."""

    def make(weight: np.ndarray) -> tvm.IRModule:
        named = constant(weight, "layer.weight")
        if weight.ndim == 4:
            mod = build({"x": (1, weight.shape[1], 8, 8)}, lambda bb, x: bb.emit(op.nn.conv2d(x, named)))
        else:
            mod = build(
                {"x": (3, weight.shape[1])},
                lambda bb, x: bb.emit(op.matmul(x, bb.emit(op.permute_dims(named)))),
            )
        return Canonicalise(AVX512)(mod)

    return make


def _call(mod: tvm.IRModule) -> Any:
    (call,) = [b.value for b in Graph(mod).bindings if is_layer(b.value)]
    return call


CASES = [
    ((16, 8, 3, 3), "unstructured", 0.1),
    ((16, 8, 3, 3), "block:4x1", 0.25),
    ((16, 8, 3, 3), "pattern:4+connectivity", 0.2),
    ((16, 8, 1, 1), "filter", 0.5),
    ((16, 32), "unstructured", 0.2),
    ((16, 32), "nm:2:4", 0.5),
    ((16, 32), "block:8x1", 0.3),
]


@pytest.mark.parametrize(("shape", "structure", "density"), CASES)
def test_a_sparse_weight_becomes_a_tuple_of_index_tensors(
    shape: tuple[int, ...], structure: str, density: float, canonical: Any, same: Any
) -> None:
    weight = _pruned(shape, structure, density)
    before = canonical(weight)
    after = Index()(before)
    call = _call(after)
    attrs = LayerAttrs.of(call)
    assert attrs.format == "tap-list"
    assert [constant_name(t) for t in call.args[1].fields] == ["layer.indptr", "layer.indices", "layer.data"]
    assert [str(t.value.dtype) for t in call.args[1].fields] == ["int32", "int32", "float32"]
    expected = TapList(rows=1).encode(weight).arrays
    for tensor, name in zip(call.args[1].fields, ("indptr", "indices", "data"), strict=True):
        np.testing.assert_array_equal(tensor.value.numpy(), expected[name])
    np.testing.assert_array_equal(weight_of(call), weight)
    assert weight_of(call).shape == shape
    assert attrs.detection["density"] == pytest.approx((weight != 0).mean())
    same(before, after)


@pytest.mark.parametrize(
    ("structure", "density", "name"),
    [("block:4x1", 0.25, "block:4x1"), ("filter", 0.5, "filter"), ("unstructured", 0.1, "unstructured")],
)
def test_the_structure_is_found_in_the_zeros(
    structure: str, density: float, name: str, canonical: Any
) -> None:
    mod = Index()(canonical(_pruned((32, 16, 3, 3), structure, density)))
    assert LayerAttrs.of(_call(mod)).detection["structure"] == name


@pytest.mark.parametrize(("structure", "density"), [("dense", 1.0), ("unstructured", 0.9)])
def test_a_dense_weight_stays_one_tensor(structure: str, density: float, canonical: Any) -> None:
    weight = _pruned((16, 8, 3, 3), structure, density)
    call = _call(Index()(canonical(weight)))
    assert LayerAttrs.of(call).format == "dense"
    assert len(call.args[1].fields) == 1
    np.testing.assert_array_equal(weight_of(call), weight)


def test_a_weight_of_zeros_alone_has_an_empty_index(canonical: Any, same: Any) -> None:
    before = canonical(np.zeros((4, 3, 3, 3), np.float32))
    after = Index()(before)
    indptr, indices, data = (t.value.numpy() for t in _call(after).args[1].fields)
    assert indptr.tolist() == [0] * 5
    assert len(indices) == len(data) == 0
    same(before, after)


@pytest.fixture
def plan_kernels(tmp_path: Path, canonical: Any) -> Any:
    """``plan_kernels(mod)``: the planned module, ranked by the cost model."""
    selector = Selector(AVX512, "test machine", measure=False, folder=tmp_path)
    return lambda mod, threads=1: PlanKernels(selector, threads)(Index()(mod))


def test_the_chosen_kernel_stands_in_the_attributes(plan_kernels: Any, canonical: Any, same: Any) -> None:
    before = canonical(_pruned((16, 8, 3, 3), "block:4x1", 0.1))
    after = plan_kernels(before)
    (layer,) = plan_of(after).layers
    attrs = LayerAttrs.of(_call(after))
    assert f'"template": "{layer.chosen.template}"' in attrs.candidate
    assert layer.chosen == layer.candidates[0]
    same(before, after)


def test_a_sparse_layer_is_recorded_with_bytes_and_tiles(plan_kernels: Any, canonical: Any) -> None:
    weight = _pruned((64, 64, 3, 3), "block:4x1", 0.1)
    (layer,) = plan_of(plan_kernels(canonical(weight))).layers
    nonzeros = np.count_nonzero(weight)
    rows = layer.chosen.parameters["R"]
    assert layer.name == "layer"
    assert (layer.op, layer.weight_shape, layer.output_shape) == ("conv2d", (64, 64, 3, 3), (1, 64, 6, 6))
    assert layer.structure == "block:4x1"
    assert layer.format == "tap-list"
    assert layer.density == pytest.approx(nonzeros / weight.size)
    assert layer.value_bytes == 4 * layer.tiles_computed * rows
    assert layer.index_bytes >= 2 * layer.tiles_computed  # 16-bit offsets
    assert layer.tiles_total == weight.size // rows
    assert nonzeros <= layer.tiles_computed * rows < weight.size
    assert layer.macs_dense == 36 * weight.size
    assert layer.macs_computed == 36 * layer.tiles_computed * rows
    assert layer.note == ""
    templates = {c.template for c in layer.candidates} | {r.template for r in layer.rejected}
    assert templates == set(TEMPLATES)
    assert any(TEMPLATES[c.template].format == "dense" for c in layer.candidates)


def test_a_dense_layer_is_listed_with_the_rejections(plan_kernels: Any, canonical: Any) -> None:
    (layer,) = plan_of(plan_kernels(canonical(_pruned((16, 8, 3, 3), "dense", 1.0)))).layers
    assert (layer.format, layer.structure, layer.index_bytes, layer.note) == ("dense", "Dense", 0, "")
    assert layer.value_bytes == 4 * 16 * 8 * 9
    assert layer.macs_computed == layer.macs_dense
    assert all(r.reason for r in layer.rejected)
    assert "taps" in {r.template for r in layer.rejected}


def test_a_sparse_layer_left_dense_says_why(plan_kernels: Any, canonical: Any) -> None:
    weight = _pruned((64, 64, 3, 3), "unstructured", 0.5)
    mod = plan_kernels(canonical(weight))
    times = {c.template: c for c in reversed(plan_of(mod).layers[0].candidates)}
    slower = replace(times["taps"], time_s=3.0, measured=True)
    choice = Choice((replace(times["direct"], time_s=2.0, measured=True), slower), ())
    layer = describe(LayerAttrs.of(_call(mod)), LayerWeight(weight, (64, 64, 3, 3)), choice, choice.times[0])
    assert layer.format == "dense"
    assert layer.note == f"left dense: {slower.label} is measured 1.50x slower"
    (barely,) = plan_of(plan_kernels(canonical(_pruned((64, 64, 3, 3), "unstructured", 0.8)))).layers
    assert "no sparse kernel takes density 0.80" in barely.note


def test_every_layer_is_in_the_plan_in_order(build: Any, plan_kernels: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        x = bb.emit(op.nn.conv2d(x, constant(_pruned((8, 3, 3, 3), "dense", 1), "stem.weight")))
        x = bb.emit(op.nn.conv2d(x, constant(_pruned((8, 8, 3, 3), "unstructured", 0.2), "body.weight")))
        x = bb.emit(op.reshape(x, (1, 8 * 16)))
        return bb.emit(op.matmul(x, constant(_pruned((10, 128), "dense", 1).T, "head.weight")))

    mod = Canonicalise(AVX512, 2)(build({"x": (1, 3, 8, 8)}, body))
    assert sum(is_layer(b.value) for b in Graph(mod).bindings) == 3
    plan = plan_of(plan_kernels(mod, 2))
    assert [layer.name for layer in plan.layers] == ["stem", "body", "head"]
    assert (plan.threads, plan.measured, plan.target) == (2, False, str(AVX512))
    assert decode(Plan, encode(plan)) == plan


def test_neither_pass_changes_its_input(canonical: Any, plan_kernels: Any) -> None:
    mod = canonical(_pruned((16, 8, 3, 3), "unstructured", 0.1))
    indexed = Index()(mod)
    assert LayerAttrs.of(_call(mod)).format == "dense"
    plan_kernels(mod)
    assert LayerAttrs.of(_call(indexed)).candidate == ""
    assert "sparseflow.plan" not in (indexed.attrs or {})
