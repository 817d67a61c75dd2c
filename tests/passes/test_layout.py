"""Layout decisions: who writes which halo, and which operators stay in lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.layout import Node, decide_layouts, logical
from sparseflow.passes.ops import constant
from sparseflow.passes.plan import PlanKernels

op = relax.op
RNG = np.random.default_rng(0)
LOW = float("-inf")


def _conv(bb: Any, x: Any, filters: int = 8, size: int = 3, relu: bool = False, **attrs: Any) -> Any:
    weight = RNG.standard_normal((filters, int(x.ty.shape[1]), size, size)).astype(np.float32)
    attrs = {"padding": size // 2, **attrs}
    y = bb.emit(op.nn.conv2d(x, constant(weight, "w"), **attrs))
    return bb.emit(op.nn.relu(y)) if relu else y


@pytest.fixture
def nodes(build: Any) -> Any:
    """``nodes(body, shape)``: the lane operators of a planned module, in order."""

    def make(body: Any, shape: tuple[int, ...] = (1, 8, 14, 14)) -> list[Node]:
        plan = PlanKernels(Selector(AVX512, "test machine", measure=False))
        return list(decide_layouts(Graph(plan(Canonicalise(AVX512)(build({"x": shape}, body)))), 16).values())

    return make


def _kind(node: Node) -> str:
    return "layer" if node.operator is None else node.operator.kind


def _layout(node: Node) -> LaneLayout:
    assert node.layout is not None
    return node.layout


def test_a_producer_writes_the_halo_of_its_consumer(nodes: Any) -> None:
    first, second = nodes(lambda bb, x: _conv(bb, _conv(bb, x)))
    assert _layout(first).halo == (1, 1, 1, 1)
    assert _layout(second).halo == (0, 0, 0, 0)
    assert _layout(first).serves(second.needs[0])


def test_the_widest_consumer_decides(nodes: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        return bb.emit(op.add(_conv(bb, y, size=5), _conv(bb, y, size=1)))

    first, *others = nodes(body)
    assert _layout(first).halo == (2, 2, 2, 2)
    assert all(_layout(first).serves(n.needs[0]) for n in others if n.inputs[0] == others[0].inputs[0])


def test_a_halo_beyond_the_neighbours_block_is_left_to_a_relayout(nodes: Any) -> None:
    first, second = nodes(lambda bb, x: _conv(bb, _conv(bb, x), size=11), (1, 8, 16, 16))
    assert _layout(first).block == (4, 4)
    assert _layout(first).halo == (0, 0, 0, 0)
    assert not _layout(first).serves(second.needs[0])


def test_even_blocks_feed_a_stride_of_two(nodes: Any) -> None:
    first, second = nodes(lambda bb, x: _conv(bb, _conv(bb, x), strides=2), (1, 8, 16, 16))
    assert _layout(first).serves(second.needs[0])
    assert second.needs[0].block == (4, 4)
    assert _layout(second).block == (2, 2)


def test_odd_blocks_need_a_relayout_before_a_stride_of_two(nodes: Any) -> None:
    first, second = nodes(lambda bb, x: _conv(bb, _conv(bb, x), strides=2), (1, 8, 20, 20))
    assert _layout(first).block == (5, 5)
    assert second.needs[0].block == (6, 6)
    assert not _layout(first).same_blocks(second.needs[0])


def test_a_max_pool_of_any_sign_asks_for_minus_infinity(nodes: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        return bb.emit(op.nn.max_pool2d(_conv(bb, x), (3, 3), (2, 2), (1, 1, 1, 1)))

    conv, pool = nodes(body, (1, 8, 16, 16))
    assert pool.operator.kind == "pool"
    assert pool.needs[0].fill == LOW
    assert _layout(conv).fill == LOW
    assert not pool.non_negative


def test_a_max_pool_after_relu_reads_zeros(nodes: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        return bb.emit(op.nn.max_pool2d(_conv(bb, x, relu=True), (3, 3), (2, 2), (1, 1, 1, 1)))

    conv, pool = nodes(body, (1, 8, 16, 16))
    assert conv.non_negative
    assert pool.non_negative
    assert _layout(conv).fill == pool.needs[0].fill == 0.0


def test_consumers_that_disagree_about_the_fill_keep_zeros_for_the_convolution(nodes: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        pooled = bb.emit(op.nn.max_pool2d(y, (3, 3), (1, 1), (1, 1, 1, 1)))
        return bb.emit(op.add(_conv(bb, y), pooled))

    for shape in ((1, 8, 16, 16), (1, 8, 13, 13)):
        found = nodes(body, shape)
        conv = next(n for n in found if n.layer is not None and not n.layer.workload.residual)
        fills = {_kind(n): n.needs[0].fill for n in found if n is not conv}
        assert fills == {"pool": LOW, "layer": 0.0}
        assert sum(_layout(conv).serves(n.needs[0]) for n in found if n is not conv) == 1


def test_mean_concat_and_elementwise_stay_in_lanes(nodes: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        a, b = _conv(bb, x, relu=True), _conv(bb, x, 4, size=1)
        joined = bb.emit(op.concat([a, b], axis=1))
        doubled = bb.emit(op.multiply(joined, joined))
        return bb.emit(op.mean(bb.emit(op.nn.silu(doubled)), axis=[2, 3]))

    found = nodes(body)
    assert [_kind(n) for n in found] == ["layer", "layer", "concat", "elementwise", "elementwise", "mean"]
    assert _layout(found[2]) == canonical(12, 14, 14, 16)
    assert not found[2].non_negative
    assert found[-1].layout is None


OUTSIDE = {
    "a pool of the input": lambda bb, x: bb.emit(op.nn.max_pool2d(x, (2, 2), (2, 2))),
    "another axis": lambda bb, x: bb.emit(op.concat([_conv(bb, x), _conv(bb, x)], axis=2)),
    "a mean over rows": lambda bb, x: bb.emit(op.mean(_conv(bb, x), axis=[2])),
    "a broadcast": lambda bb, x: bb.emit(op.multiply(_conv(bb, x), _conv(bb, x, 1))),
    "sigmoid, which maps zero to a half": lambda bb, x: bb.emit(op.sigmoid(_conv(bb, x))),
    "dilated pool": lambda bb, x: bb.emit(op.nn.max_pool2d(_conv(bb, x), (2, 2), (1, 1), dilation=(2, 2))),
    "average with ceil_mode": lambda bb, x: bb.emit(
        op.nn.avg_pool2d(_conv(bb, x), (3, 3), (2, 2), ceil_mode=True)
    ),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_has_no_lane_kernel_is_left_to_tvm(kind: str, nodes: Any) -> None:
    assert {_kind(n) for n in nodes(OUTSIDE[kind])} <= {"layer"}


def test_logical_dimensions() -> None:
    assert logical((2, 3, 4, 5), "nchw") == (3, 4, 5)
    assert logical((2, 3, 7), "matrix") == (7, 1, 6)
