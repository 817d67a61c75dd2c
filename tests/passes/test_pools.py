"""PoolLast: batch norm and activation come before a max pool where that changes no result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.kernels.target.cpu import AVX512
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.ops import constant
from sparseflow.passes.pools import PoolLast

op = relax.op
RNG = np.random.default_rng(0)
X = {"x": (2, 3, 9, 8)}
POOL = "relax.nn.max_pool2d"


def _random(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def _pooled_conv(bb: Any, x: Any, bias: bool = False) -> Any:
    y = bb.emit(op.nn.conv2d(x, constant(_random(4, 3, 3, 3), "conv.weight"), padding=1))
    if bias:
        y = bb.emit(op.add(y, constant(_random(1, 4, 1, 1))))
    return bb.emit(op.nn.max_pool2d(y, (3, 3), (2, 2), (1, 1, 1, 1)))


def _norm(bb: Any, x: Any, gamma: Any = None, **attrs: Any) -> Any:
    gamma = np.abs(_random(4)) if gamma is None else gamma
    values = [constant(v) for v in (gamma, _random(4), _random(4), np.abs(_random(4)) + 0.1)]
    return bb.emit(bb.emit(op.nn.batch_norm(x, *values, axis=1, **{"training": False, **attrs}))[0])


def _thresholded(bb: Any, x: Any) -> Any:
    above = bb.emit(op.greater(x, relax.const(np.float32(0.5))))
    return bb.emit(op.where(above, x, relax.const(np.float32(0.0))))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "fatrelu"])
def test_all_but_the_pool_joins_the_layer(
    bias: bool, activation: str, build: Any, operators: Any, same: Any
) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _norm(bb, _pooled_conv(bb, x, bias))
        if activation == "relu":
            return bb.emit(op.nn.relu(y))
        if activation == "relu6":
            return bb.emit(op.clip(y, 0, 6))
        return _thresholded(bb, y) if activation == "fatrelu" else y

    mod = build(X, body)
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", POOL]
    same(mod, Canonicalise(AVX512)(mod))


def test_the_scale_may_be_left_out(build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: _norm(bb, _pooled_conv(bb, x), -np.ones(4, np.float32), scale=False))
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", POOL]
    same(mod, Canonicalise(AVX512)(mod))


def test_a_negative_scale_keeps_the_order(build: Any, operators: Any) -> None:
    gamma = np.array([1.0, 0.5, -0.1, 1.0], np.float32)
    mod = build(X, lambda bb, x: bb.emit(op.nn.relu(_norm(bb, _pooled_conv(bb, x), gamma))))
    tvm.ir.assert_structural_equal(PoolLast()(mod), mod)


def test_an_activation_that_falls_keeps_the_order(build: Any, operators: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.nn.silu(_pooled_conv(bb, x))))
    tvm.ir.assert_structural_equal(PoolLast()(mod), mod)


def test_a_pool_that_is_read_twice_keeps_the_order(build: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _pooled_conv(bb, x)
        return bb.emit(op.add(bb.emit(op.nn.relu(y)), y))

    mod = build(X, body)
    tvm.ir.assert_structural_equal(PoolLast()(mod), mod)


def test_a_pool_of_an_input_keeps_the_order(build: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        return bb.emit(op.nn.relu(bb.emit(op.nn.max_pool2d(x, (2, 2), (2, 2)))))

    mod = build(X, body)
    tvm.ir.assert_structural_equal(PoolLast()(mod), mod)


def test_the_input_module_is_not_changed(build: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.nn.relu(_norm(bb, _pooled_conv(bb, x)))))
    before = mod.script(show_meta=False)
    PoolLast()(mod)
    assert mod.script(show_meta=False) == before
