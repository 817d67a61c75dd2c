"""Lower: layouts change only where neighbours disagree, and what is computed stays the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.passes import pipeline
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.hoist import call_labels
from sparseflow.passes.index import Index
from sparseflow.passes.lower import Lower
from sparseflow.passes.ops import constant, is_layer
from sparseflow.passes.plan import PlanKernels

op = relax.op
RNG = np.random.default_rng(0)


def _conv(bb: Any, x: Any, filters: int = 8, size: int = 3, name: str = "w", **attrs: Any) -> Any:
    channels = int(x.ty.shape[1]) // attrs.get("groups", 1)
    weight = RNG.standard_normal((filters, channels, size, size)).astype(np.float32)
    weight[RNG.random(weight.shape) < 0.7] = 0.0
    return bb.emit(op.nn.conv2d(x, constant(weight, name), **{"padding": size // 2, **attrs}))


@pytest.fixture
def lowered(build: Any) -> Any:
    """``lowered(body, shape)``: the module before and after all phases up to Lower."""

    def make(body: Any, shape: tuple[int, ...] = (1, 8, 16, 16)) -> tuple[Any, Any]:
        mod = build({"x": shape}, body)
        selector = Selector(AVX512, "test machine", measure=False)
        passes = [Canonicalise(AVX512), Index(), PlanKernels(selector), Lower(AVX512)]
        return mod, tvm.transform.Sequential(passes)(mod)

    return make


def _kinds(mod: Any, operators: Any) -> Counter[str]:
    """How often each kind of kernel is called; the number that makes its name unique is cut off."""
    return Counter(name.rpartition("_")[0] or name for name in operators(mod))


def _relayouts(mod: Any, operators: Any) -> tuple[int, int]:
    kinds = _kinds(mod, operators)
    return kinds["to_lanes"], kinds["from_lanes"]


def _chain(bb: Any, x: Any) -> Any:
    for _ in range(4):
        x = bb.emit(op.nn.relu(_conv(bb, x)))
    return x


def test_a_chain_changes_layout_once_on_each_side(lowered: Any, operators: Any) -> None:
    _, after = lowered(_chain)
    assert _relayouts(after, operators) == (1, 1)
    assert sum(n for k, n in _kinds(after, operators).items() if k.startswith("conv2d")) == 4
    assert not any(is_layer(b.value) for b in Graph(after).bindings)


def _residual(bb: Any, x: Any) -> Any:
    y = bb.emit(op.nn.relu(_conv(bb, x)))
    z = _conv(bb, bb.emit(op.nn.relu(_conv(bb, y))))
    return bb.emit(op.nn.relu(bb.emit(op.add(z, y))))


def test_a_residual_stays_in_lanes(lowered: Any, operators: Any) -> None:
    _, after = lowered(_residual)
    assert _relayouts(after, operators) == (1, 1)


def _mixed(bb: Any, x: Any) -> Any:
    a = _conv(bb, bb.emit(op.nn.max_pool2d(_conv(bb, x), (3, 3), (2, 2), (1, 1, 1, 1))))
    b = bb.emit(op.nn.avg_pool2d(a, (2, 2), (2, 2), (0, 0, 0, 0)))
    c = bb.emit(op.concat([b, bb.emit(op.nn.silu(b))], axis=1))
    return bb.emit(op.mean(_conv(bb, bb.emit(op.multiply(c, c))), axis=[2, 3]))


def test_pools_concat_and_mean_stay_in_lanes(lowered: Any, operators: Any) -> None:
    _, after = lowered(_mixed)
    kinds = _kinds(after, operators)
    assert (kinds["max_pool"], kinds["avg_pool"], kinds["concat"], kinds["global_mean"]) == (1, 1, 1, 1)
    assert kinds["from_lanes"] == 0


def test_a_row_major_operator_between_layers_costs_one_change_each_way(lowered: Any, operators: Any) -> None:
    _, after = lowered(lambda bb, x: _conv(bb, bb.emit(op.exp(_conv(bb, x)))))
    assert _relayouts(after, operators) == (2, 2)


def test_a_tensor_is_converted_once_for_many_readers(lowered: Any, operators: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        s, t = bb.emit(op.exp(y)), bb.emit(op.erf(y))
        return bb.emit(op.add(bb.emit(op.add(s, t)), bb.emit(op.add(_conv(bb, x), _conv(bb, x)))))

    _, after = lowered(body)
    assert _kinds(after, operators)["to_lanes"] == 1


def test_equal_layers_share_one_kernel(lowered: Any) -> None:
    weight = constant(RNG.standard_normal((8, 8, 3, 3)).astype(np.float32), "shared")

    def body(bb: Any, x: Any) -> Any:
        for _ in range(3):
            x = bb.emit(op.nn.conv2d(x, weight, padding=1))
        return x

    _, after = lowered(body)
    kernels = {g.name_hint for g in after.functions if g.name_hint.startswith("conv2d")}
    assert len(kernels) == 2  # the last one writes no halo


def test_a_layer_that_is_also_a_result_is_given_in_rows(build: Any, agree: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        return y, _conv(bb, y)

    agree(build({"x": (1, 3, 9, 9)}, body))


def _two_sizes(bb: Any, x: Any) -> Any:
    y = bb.emit(op.nn.relu(_conv(bb, x, 12, name="down.weight", strides=2)))
    y = bb.emit(op.nn.relu(_conv(bb, y, 12, 11)))
    y = _conv(bb, y, 6, 3, groups=2, dilation=2, padding=2)
    return bb.emit(op.add(_conv(bb, y, 6, 1), y))


NUMERIC = {"chain": _chain, "residual": _residual, "two sizes": _two_sizes}


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize(("threads", "batch"), [(1, 2), (2, 1)])
def test_all_phases_keep_the_meaning(name: str, threads: int, batch: int, build: Any, agree: Any) -> None:
    agree(build({"x": (batch, 8, 13, 17)}, NUMERIC[name]), threads)


def test_labels_name_each_call_by_its_layer(lowered: Any) -> None:
    _, after = lowered(lambda bb, x: _conv(bb, _conv(bb, x, name="a.weight"), name="b.weight"))
    labels = call_labels(after)
    assert [label for kernel, label in labels if kernel.startswith("conv2d")] == ["a", "b"]
    assert {label for kernel, label in labels if "lanes" in kernel} == {k for k, _ in labels if "lanes" in k}


def test_the_input_module_is_not_changed(build: Any) -> None:
    selector = Selector(AVX512, "test machine", measure=False)
    planned = tvm.transform.Sequential([Canonicalise(AVX512), Index(), PlanKernels(selector)])(
        build({"x": (1, 3, 9, 9)}, _chain)
    )
    text = planned.script(show_meta=False)
    Lower(AVX512)(planned)
    assert planned.script(show_meta=False) == text
    assert [g.name_hint for g in planned.functions] == ["main"]


def test_kernels_are_marked_as_scheduled_and_opaque(lowered: Any) -> None:
    _, after = lowered(_chain)
    for name, function in after.functions_items():
        if name.name_hint != "main":
            assert bool(function.attrs["tirx.is_scheduled"])
            assert int(function.attrs["op_pattern"]) == 8


def test_pipeline_phases_are_ordinary_passes(build: Any, same: Any, tmp_path: Path) -> None:
    selector = Selector(AVX512, "test machine", measure=False, folder=tmp_path)
    mod = build({"x": (1, 3, 9, 9)}, _chain)
    phases = pipeline.phases(selector)
    assert list(phases)[:1] == ["canonicalise"]
    assert list(phases)[-2:] == ["lower", "finish"]
    for passes in phases.values():
        assert all(isinstance(p, tvm.transform.Pass) for p in passes)
    for name in list(phases)[:-2]:
        after = tvm.transform.Sequential([relax.transform.Normalize(), *phases[name]])(mod)
        same(mod, after)
        mod = after


def _small_strided(bb: Any, x: Any) -> Any:
    y = bb.emit(op.nn.relu(_conv(bb, x, 16)))
    return _conv(bb, y, 24, size=1, name="down", strides=2, padding=0)


def test_a_strided_1x1_takes_only_its_pixels_along(lowered: Any, build: Any, agree: Any) -> None:
    """28x28 and 14x14 have other lane grids: the change of layout leaves out what the stride skips."""
    _, after = lowered(_small_strided, (1, 8, 28, 28))
    sizes = [int(b.value.ty.shape[1]) for b in Graph(after).bindings if "to_lanes" in str(b.value)]
    assert len(sizes) == 2
    assert sizes[1] == 16 * 14 * 16  # channels, vectors of a 14x14 map on a 2x8 grid, lanes
    agree(build({"x": (2, 8, 28, 28)}, _small_strided))
