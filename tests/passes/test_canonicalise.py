"""Canonicalise: batch norm, bias, residual and activation join the layer where that changes no result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.kernels.target.cpu import AVX512
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, constant, is_layer, layer_call, weight_of

op = relax.op
RNG = np.random.default_rng(0)
X = {"x": (1, 3, 6, 5)}


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _const(array: np.ndarray | float, name: str = "") -> Any:
    return constant(np.asarray(array, np.float32), name)


def _conv(bb: Any, x: Any, filters: int = 4, name: str = "conv.weight", size: int = 3, **attrs: Any) -> Any:
    channels = int(x.ty.shape[1]) // attrs.get("groups", 1)
    weight = _const(_random(filters, channels, size, size), name)
    return bb.emit(op.nn.conv2d(x, weight, **{"padding": size // 2, **attrs}))


def _batch_norm(bb: Any, x: Any, axis: int = 1, **attrs: Any) -> Any:
    n = int(x.ty.shape[axis])
    parameters = [_const(_random(n)) for _ in range(3)] + [_const(np.abs(_random(n)) + 0.1)]
    return bb.emit(op.nn.batch_norm(x, *parameters, axis=axis, **{"training": False, **attrs}))


def _layers(mod: tvm.IRModule) -> list[tuple[LayerAttrs, Any]]:
    values = [b.value for b in Graph(mod).bindings]
    return [(LayerAttrs.of(v), v) for v in values if is_layer(v)]


def _only(mod: tvm.IRModule, operators: Any) -> tuple[LayerAttrs, Any]:
    """The layer that has swallowed everything else."""
    assert [n for n in operators(mod) if not n.startswith("sparseflow.")] == []
    ((attrs, call),) = _layers(mod)
    return attrs, call


def _bias(call: Any) -> np.ndarray:
    return np.asarray(call.args[2].fields[0].value.numpy())


def test_before_and_expected_of_conv_bias_relu(build: Any) -> None:
    weight, shift = _random(4, 3, 3, 3), _random(1, 4, 1, 1)

    def before(bb: Any, x: Any) -> Any:
        y = bb.emit(op.nn.conv2d(x, _const(weight, "stem.weight"), padding=1))
        return bb.emit(op.nn.relu(bb.emit(op.add(y, _const(shift)))))

    found = Canonicalise(AVX512)(build(X, before))
    ((attrs, _),) = _layers(found)

    def expected(bb: Any, x: Any) -> Any:
        bias = relax.Tuple([_const(shift.reshape(-1))])
        return bb.emit(layer_call(attrs, x, relax.Tuple([_const(weight)]), bias, relax.Tuple([])))

    tvm.ir.assert_structural_equal(found, build(X, expected))
    w = attrs.workload
    assert attrs.name == "stem"
    assert (w.op, w.bias, w.residual, w.activation, w.threads) == ("conv2d", True, False, "relu", 1)
    assert w.weight_shape == (4, 3, 3, 3)
    assert (w.batch, w.height, w.width, w.padding) == (1, 6, 5, (1, 1, 1, 1))
    assert attrs.out_shape == (1, 4, 6, 5)


def test_a_module_without_layers_is_unchanged(build: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.nn.relu(bb.emit(op.add(x, x)))))
    tvm.ir.assert_structural_equal(Canonicalise(AVX512)(mod), mod)


def test_the_input_module_is_not_changed(build: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.nn.relu(bb.emit(_batch_norm(bb, _conv(bb, x))[0]))))
    before = mod.script(show_meta=False)
    Canonicalise(AVX512)(mod)
    assert mod.script(show_meta=False) == before


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False)])
def test_batch_norm_is_folded(center: bool, scale: bool, build: Any, operators: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        return bb.emit(_batch_norm(bb, _conv(bb, x), center=center, scale=scale, epsilon=1e-3)[0])

    mod = build(X, body)
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.bias
    same(mod, Canonicalise(AVX512)(mod))


def test_folded_batch_norm_follows_the_formula(build: Any, operators: Any) -> None:
    weight, gamma, beta, mean = _random(4, 3, 1, 1), _random(4), _random(4), _random(4)
    var, shift = np.abs(_random(4)) + 0.5, _random(4)

    def body(bb: Any, x: Any) -> Any:
        y = bb.emit(op.nn.conv2d(x, _const(weight)))
        y = bb.emit(op.add(y, _const(shift.reshape(1, 4, 1, 1))))
        constants = [_const(v) for v in (gamma, beta, mean, var)]
        return bb.emit(bb.emit(op.nn.batch_norm(y, *constants, axis=1, epsilon=1e-5, training=False))[0])

    _, call = _only(Canonicalise(AVX512)(build(X, body)), operators)
    factor = gamma / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(weight_of(call), weight * factor[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(_bias(call), (shift - mean) * factor + beta, rtol=1e-4, atol=1e-6)


UNFOLDED: dict[str, Callable[[Any, Any], Any]] = {
    "statistics of the batch": lambda bb, x: bb.emit(_batch_norm(bb, x, training=True)[0]),
    "over another axis": lambda bb, x: bb.emit(_batch_norm(bb, x, axis=3)[0]),
    "whose mean is used": lambda bb, x: tuple(bb.emit(b) for b in _fields(bb, _batch_norm(bb, x))),
}


def _fields(bb: Any, norm: Any) -> list[Any]:
    return [norm[0], norm[1]]


@pytest.mark.parametrize("kind", UNFOLDED)
def test_batch_norm_that_must_stay(kind: str, build: Any, operators: Any) -> None:
    mod = build(X, lambda bb, x: UNFOLDED[kind](bb, _conv(bb, x)))
    assert "relax.nn.batch_norm" in operators(Canonicalise(AVX512)(mod))


SHIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "per filter": lambda bb, y: op.add(y, _const(_random(1, 4, 1, 1))),
    "without batch axis": lambda bb, y: op.add(y, _const(_random(4, 1, 1))),
    "on the left": lambda bb, y: op.add(_const(_random(1, 4, 1, 1)), y),
    "scalar": lambda bb, y: op.add(y, _const(1.5)),
    "subtracted": lambda bb, y: op.subtract(y, _const(_random(1, 4, 1, 1))),
    "multiplied": lambda bb, y: op.multiply(_const(_random(1, 4, 1, 1)), y),
    "divided": lambda bb, y: op.divide(y, _const(np.abs(_random(1, 4, 1, 1)) + 0.5)),
    "twice": lambda bb, y: op.multiply(bb.emit(op.add(y, _const(_random(1, 4, 1, 1)))), _const(2.0)),
}


@pytest.mark.parametrize("kind", SHIFTS)
def test_constants_per_filter_are_folded(kind: str, build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(SHIFTS[kind](bb, _conv(bb, x))))
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.bias
    same(mod, Canonicalise(AVX512)(mod))


KEPT: dict[str, Callable[[Any, Any], Any]] = {
    "bias per position": lambda bb, y: op.add(y, _const(_random(1, 1, 1, 5))),
    "bias along the columns": lambda bb, y: op.add(y, _const(_random(5))),
    "bias that adds images": lambda bb, y: op.add(y, _const(_random(2, 4, 1, 1))),
    "constant minus layer": lambda bb, y: op.subtract(_const(_random(1, 4, 1, 1)), y),
    "constant over layer": lambda bb, y: op.divide(_const(_random(1, 4, 1, 1)), y),
    "bias of higher rank": lambda bb, y: op.add(y, _const(_random(1, 1, 4, 1, 1))),
    "power": lambda bb, y: op.power(y, _const(2.0)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_other_arithmetic_stays(kind: str, build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(KEPT[kind](bb, _conv(bb, x))))
    assert len(operators(Canonicalise(AVX512)(mod))) == 2
    same(mod, Canonicalise(AVX512)(mod))


def _hardswish(bb: Any, y: Any, six: float = 6.0, order: str = "clip first", other: bool = False) -> Any:
    at = bb.emit(op.add(y, _const(3.0)))
    if order == "clip first":
        at = bb.emit(op.divide(bb.emit(op.clip(at, 0, 6)), _const(six)))
    elif order == "scale first":
        at = bb.emit(op.clip(bb.emit(op.divide(at, _const(six))), 0, 6))
    elif order == "no clip":
        at = bb.emit(op.divide(bb.emit(op.divide(at, _const(six))), _const(six)))
    elif order == "six over":
        at = bb.emit(op.divide(_const(six), bb.emit(op.clip(at, 1, 6))))
    elif order == "times a sixth":
        at = bb.emit(op.multiply(bb.emit(op.clip(at, 0, 6)), _const(1 / six)))
    product = bb.emit(op.multiply(y, at))
    return (product, at) if other else product


ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda bb, y: bb.emit(op.nn.relu(y)),
    "relu6": lambda bb, y: bb.emit(op.clip(y, 0, 6)),
    "silu": lambda bb, y: bb.emit(op.nn.silu(y)),
    "gelu": lambda bb, y: bb.emit(op.nn.gelu(y)),
    "hardswish": _hardswish,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_fused(kind: str, build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: ACTIVATIONS[kind](bb, _conv(bb, x)))
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.activation == kind
    same(mod, Canonicalise(AVX512)(mod))


def test_hardswish_with_a_multiplied_sixth_is_fused(build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: _hardswish(bb, _conv(bb, x), order="times a sixth"))
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.activation == "hardswish"
    same(mod, Canonicalise(AVX512)(mod))


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "scale first"},
        {"order": "no clip"},
        {"order": "six over"},
        {"six": 5.0},
        {"other": True},
    ],
)
def test_what_only_resembles_hardswish_is_not_fused(changes: dict[str, Any], build: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: _hardswish(bb, _conv(bb, x), **changes))
    ((attrs, _),) = _layers(Canonicalise(AVX512)(mod))
    assert attrs.workload.activation == "none"
    same(mod, Canonicalise(AVX512)(mod))


THRESHOLDED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "where above": lambda bb, y, t: bb.emit(op.where(bb.emit(op.greater(y, t)), y, _const(0.0))),
    "where below": lambda bb, y, t: bb.emit(op.where(bb.emit(op.less_equal(y, t)), _const(0.0), y)),
    "where, mirrored": lambda bb, y, t: bb.emit(op.where(bb.emit(op.less(t, y)), y, _const(0.0))),
    "product": lambda bb, y, t: bb.emit(
        op.multiply(bb.emit(op.astype(bb.emit(op.greater(y, t)), "float32")), y)
    ),
}


@pytest.mark.parametrize("kind", THRESHOLDED)
def test_a_thresholded_relu_is_fused(kind: str, build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: THRESHOLDED[kind](bb, _conv(bb, x), _const(0.75)))
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert (attrs.workload.activation, attrs.workload.parameter) == ("fatrelu", 0.75)
    same(mod, Canonicalise(AVX512)(mod))


def test_a_threshold_of_zero_is_a_relu(build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: THRESHOLDED["where above"](bb, _conv(bb, x), _const(0.0)))
    attrs, _ = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.activation == "relu"
    same(mod, Canonicalise(AVX512)(mod))


def _resembling(kind: str, bb: Any, y: Any) -> Any:
    above = bb.emit(op.greater(y, _const(-0.5 if kind == "negative threshold" else 0.5)))
    if kind == "other value":
        return bb.emit(op.where(above, y, _const(0.25)))
    if kind == "the small ones are kept":
        return bb.emit(op.where(above, _const(0.0), y))
    kept = bb.emit(op.where(above, y, _const(0.0)))
    return (kept, above) if kind == "the comparison is a result" else kept


@pytest.mark.parametrize(
    "kind", ["negative threshold", "other value", "the small ones are kept", "the comparison is a result"]
)
def test_what_only_resembles_a_thresholded_relu_is_not_fused(kind: str, build: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: _resembling(kind, bb, _conv(bb, x)))
    ((attrs, _),) = _layers(Canonicalise(AVX512)(mod))
    assert attrs.workload.activation == "none"
    same(mod, Canonicalise(AVX512)(mod))


def test_clips_to_other_bounds_stay(build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.clip(_conv(bb, x), -1, 6)))
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", "relax.clip"]
    same(mod, Canonicalise(AVX512)(mod))


def test_one_activation_only_is_fused(build: Any, operators: Any, same: Any) -> None:
    mod = build(X, lambda bb, x: bb.emit(op.nn.silu(bb.emit(op.nn.relu(_conv(bb, x))))))
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", "relax.nn.silu"]
    same(mod, Canonicalise(AVX512)(mod))


def test_nothing_is_fused_past_a_value_with_other_users(build: Any, operators: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        return bb.emit(op.add(bb.emit(op.nn.relu(y)), bb.emit(op.sigmoid(y))))

    mod = build(X, body)
    found = Canonicalise(AVX512)(mod)
    ((attrs, _),) = _layers(found)
    assert attrs.workload.activation == "none"
    assert "relax.nn.relu" in operators(found)
    same(mod, Canonicalise(AVX512)(mod))


def test_nothing_is_fused_past_a_result(build: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        return y, bb.emit(op.nn.relu(y))

    mod = build(X, body)
    ((attrs, _),) = _layers(Canonicalise(AVX512)(mod))
    assert attrs.workload.activation == "none"
    same(mod, Canonicalise(AVX512)(mod))


def test_a_residual_input_is_fused(build: Any, operators: Any, same: Any) -> None:
    shapes = {"x": (1, 3, 6, 5), "r": (1, 4, 6, 5)}
    mod = build(shapes, lambda bb, x, r: bb.emit(op.nn.relu(bb.emit(op.add(r, _conv(bb, x))))))
    attrs, call = _only(Canonicalise(AVX512)(mod), operators)
    assert attrs.workload.residual
    assert attrs.workload.activation == "relu"
    assert len(call.args[3].fields) == 1
    same(mod, Canonicalise(AVX512)(mod))


def test_one_of_two_layers_takes_the_addition(build: Any, operators: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        first = bb.emit(_batch_norm(bb, _conv(bb, x, name="a.weight"))[0])
        second = bb.emit(_batch_norm(bb, _conv(bb, x, name="b.weight"))[0])
        return bb.emit(op.nn.relu(bb.emit(op.add(first, second))))

    mod = build(X, body)
    found = Canonicalise(AVX512)(mod)
    assert operators(found) == ["sparseflow.conv2d"] * 2
    assert sorted(a.workload.residual for a, _ in _layers(found)) == [False, True]
    assert sorted(a.workload.activation for a, _ in _layers(found)) == ["none", "relu"]
    same(mod, Canonicalise(AVX512)(mod))


def test_an_addition_without_activation_after_it(build: Any, operators: Any, same: Any) -> None:
    """MobileNetV2's bottleneck: expand with relu6, depthwise with relu6, project, add, nothing."""

    def body(bb: Any, x: Any) -> Any:
        y = bb.emit(op.clip(_conv(bb, x, 8, size=1), 0, 6))
        y = bb.emit(op.clip(_conv(bb, y, 8, groups=8), 0, 6))
        return bb.emit(op.add(_conv(bb, y, 4, size=1), x))

    mod = build({"x": (1, 4, 7, 7)}, body)
    found = Canonicalise(AVX512)(mod)
    assert operators(found) == ["sparseflow.conv2d"] * 3
    assert [a.workload.residual for a, _ in _layers(found)] == [False, False, True]
    assert [a.workload.activation for a, _ in _layers(found)] == ["relu6", "relu6", "none"]
    same(mod, Canonicalise(AVX512)(mod))


@pytest.mark.parametrize("shape", [(1, 1, 6, 5), (2, 4, 6, 5), (1, 4, 1, 1)])
def test_additions_that_broadcast_stay(shape: tuple[int, ...], build: Any, operators: Any, same: Any) -> None:
    shapes = {"x": (1, 3, 6, 5), "r": shape}
    mod = build(shapes, lambda bb, x, r: bb.emit(op.add(_conv(bb, x), r)))
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", "relax.add"]
    same(mod, Canonicalise(AVX512)(mod))


def test_a_layer_added_to_itself_stays(build: Any, operators: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = _conv(bb, x)
        return bb.emit(op.add(y, y))

    mod = build(X, body)
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", "relax.add"]
    same(mod, Canonicalise(AVX512)(mod))


def test_subtraction_of_a_computed_tensor_stays(build: Any, operators: Any, same: Any) -> None:
    shapes = {"x": (1, 3, 6, 5), "r": (1, 4, 6, 5)}
    mod = build(shapes, lambda bb, x, r: bb.emit(op.subtract(r, _conv(bb, x))))
    assert operators(Canonicalise(AVX512)(mod)) == ["sparseflow.conv2d", "relax.subtract"]
    same(mod, Canonicalise(AVX512)(mod))


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("transposed", [True, False])
def test_linear_layers_of_any_rank(
    shape: tuple[int, ...], transposed: bool, build: Any, operators: Any, same: Any
) -> None:
    weight = _random(20, 12)

    def body(bb: Any, x: Any) -> Any:
        w = bb.emit(op.permute_dims(_const(weight, "fc.weight"))) if transposed else _const(weight.T)
        return bb.emit(op.nn.gelu(bb.emit(op.add(bb.emit(op.matmul(x, w)), _const(_random(20))))))

    mod = build({"x": shape}, body)
    attrs, call = _only(Canonicalise(AVX512)(mod), operators)
    w = attrs.workload
    assert (w.op, w.batch, w.height, w.width) == ("linear", 1, 1, int(np.prod(shape[:-1])))
    assert (w.channels, w.filters, w.bias, w.activation) == (12, 20, True, "gelu")
    assert attrs.out_shape == (*shape[:-1], 20)
    np.testing.assert_array_equal(weight_of(call), weight)
    same(mod, Canonicalise(AVX512)(mod))


def test_products_of_computed_matrices_stay(build: Any, operators: Any, same: Any) -> None:
    mod = build({"x": (5, 6), "y": (6, 7)}, lambda bb, x, y: bb.emit(op.matmul(x, y)))
    assert operators(Canonicalise(AVX512)(mod)) == ["relax.matmul"]
    same(mod, Canonicalise(AVX512)(mod))


def test_stacks_of_weights_and_weights_on_the_left_stay(build: Any, operators: Any, same: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        y = bb.emit(op.matmul(x, _const(_random(2, 6, 7))))
        return bb.emit(op.matmul(_const(_random(3, 5)), y))

    mod = build({"x": (2, 5, 6)}, body)
    assert operators(Canonicalise(AVX512)(mod)) == ["relax.matmul"] * 2
    same(mod, Canonicalise(AVX512)(mod))


def test_computed_weights_and_other_layouts_stay(build: Any, operators: Any) -> None:
    def nhwc(bb: Any, x: Any) -> Any:
        weight = _const(_random(4, 3, 3, 3))
        return bb.emit(op.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI"))

    assert operators(Canonicalise(AVX512)(build({"x": (1, 6, 5, 3)}, nhwc))) == ["relax.nn.conv2d"]
    shapes = {"x": (1, 3, 6, 5), "w": (4, 3, 3, 3)}
    computed = build(shapes, lambda bb, x, w: bb.emit(op.nn.conv2d(x, w)))
    assert operators(Canonicalise(AVX512)(computed)) == ["relax.nn.conv2d"]


def test_a_weight_used_twice_is_folded_apart(build: Any, same: Any) -> None:
    weight = _const(_random(3, 3, 3, 3), "shared.weight")

    def body(bb: Any, x: Any) -> Any:
        y = bb.emit(op.nn.conv2d(x, weight, padding=1))
        y = bb.emit(op.multiply(y, _const(2.0)))
        return bb.emit(op.nn.conv2d(y, weight, padding=1))

    mod = build(X, body)
    first, second = (weight_of(call) for _, call in _layers(Canonicalise(AVX512)(mod)))
    np.testing.assert_allclose(first, 2 * second)
    same(mod, Canonicalise(AVX512)(mod))


def test_unnamed_layers_get_names(build: Any) -> None:
    def body(bb: Any, x: Any) -> Any:
        return _conv(bb, _conv(bb, x, name=""), name="")

    names = [a.name for a, _ in _layers(Canonicalise(AVX512)(build(X, body)))]
    assert all(n.startswith("conv2d") for n in names)
    assert len(set(names)) == 2
