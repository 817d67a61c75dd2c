"""Relax modules from a few lines, an interpreter as the oracle, and what stands in a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import ir, relax


def _build(
    inputs: Mapping[str, tuple[int, ...]], body: Callable[..., Any], dtype: str = "float32"
) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    variables = [relax.Var(n, relax.TensorType(s, dtype)) for n, s in inputs.items()]
    with builder.function("main", variables):
        with builder.dataflow():
            out = body(builder, *variables)
            if isinstance(out, tuple):
                out = relax.Tuple(list(out))
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    return builder.finalize()


def _layer(call: Any, values: list[Any]) -> Any:
    """What a ``sparseflow`` operator means: activation(layer(x, weight) + bias + residual)."""
    from sparseflow.core.activations import ACTIVATIONS
    from sparseflow.passes.ops import LayerAttrs, weight_of

    attrs = LayerAttrs.of(call)
    w, (x, _, bias, residual) = attrs.workload, values
    weight = torch.from_numpy(weight_of(call)).double()
    if w.op == "conv2d":
        top, left, bottom, right = w.padding
        x = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(x, weight, None, w.stride, 0, w.dilation, w.groups)
        y = y + bias[0][:, None, None] if bias else y
    else:
        y = x @ weight.T
        y = y + bias[0] if bias else y
    if len(residual) == 2:
        index = residual[1].long()
        picked = residual[0][:, index.clamp(min=0)]
        residual = [torch.where((index >= 0)[:, None, None], picked, torch.zeros(()))]
    y = y + residual[0] if residual else y
    return torch.from_numpy(ACTIVATIONS[w.activation].numpy(y.numpy(), w.parameter))


def _batch_norm(call: Any, values: list[Any]) -> Any:
    x, gamma, beta, mean, var = values
    a, shape = call.attrs, [1] * x.ndim
    shape[int(a.axis)] = -1
    if a.training:
        others = [i for i in range(x.ndim) if i != int(a.axis)]
        mean, var = x.mean(others), x.var(others, unbiased=False)
    y = (x - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + a.epsilon)
    y = y * gamma.reshape(shape) if a.scale else y
    return (y + beta.reshape(shape) if a.center else y), mean, var


def _conv2d(call: Any, values: list[Any]) -> Any:
    a = call.attrs
    top, left, bottom, right = (int(v) for v in a.padding)
    strides, dilation = ([int(v) for v in s] for s in (a.strides, a.dilation))
    return F.conv2d(
        F.pad(values[0], (left, right, top, bottom)), values[1], None, strides, 0, dilation, a.groups
    )


def _window(call: Any) -> tuple[list[int], ...]:
    a = call.attrs
    return tuple([int(n) for n in s] for s in (a.pool_size, a.strides, list(a.padding)[:2]))


MEANING: dict[str, Callable[[Any, list[Any]], Any]] = {
    "sparseflow.conv2d": _layer,
    "sparseflow.linear": _layer,
    "relax.nn.conv2d": _conv2d,
    "relax.nn.batch_norm": _batch_norm,
    "relax.add": lambda _, v: v[0] + v[1],
    "relax.subtract": lambda _, v: v[0] - v[1],
    "relax.multiply": lambda _, v: v[0] * v[1],
    "relax.divide": lambda _, v: v[0] / v[1],
    "relax.power": lambda _, v: v[0] ** v[1],
    "relax.matmul": lambda _, v: v[0] @ v[1],
    "relax.permute_dims": lambda _, v: v[0].permute(*reversed(range(v[0].ndim))),
    "relax.clip": lambda c, v: v[0].clip(float(c.args[1].value), float(c.args[2].value)),
    "relax.exp": lambda _, v: torch.exp(v[0]),
    "relax.tanh": lambda _, v: torch.tanh(v[0]),
    "relax.sigmoid": lambda _, v: torch.sigmoid(v[0]),
    "relax.nn.relu": lambda _, v: F.relu(v[0]),
    "relax.nn.silu": lambda _, v: F.silu(v[0]),
    "relax.nn.gelu": lambda _, v: F.gelu(v[0]),
    "relax.nn.softmax": lambda c, v: torch.softmax(v[0], int(c.attrs.axis)),
    "relax.nn.max_pool2d": lambda c, v: F.max_pool2d(v[0], *_window(c)),
    "relax.nn.avg_pool2d": lambda c, v: F.avg_pool2d(
        v[0], *_window(c), False, bool(c.attrs.count_include_pad)
    ),
    "relax.mean": lambda c, v: v[0].mean([int(a) for a in c.attrs.axis], bool(c.attrs.keepdims)),
    "relax.concat": lambda c, v: torch.cat(v[0], int(c.attrs.axis)),
    "relax.reshape": lambda c, v: v[0].reshape([int(n) for n in c.ty.shape.values]),
    "relax.maximum": lambda _, v: torch.maximum(v[0], v[1]),
    "relax.greater": lambda _, v: v[0] > v[1],
    "relax.less": lambda _, v: v[0] < v[1],
    "relax.less_equal": lambda _, v: v[0] <= v[1],
    "relax.where": lambda _, v: torch.where(v[0], v[1], v[2]),
    "relax.astype": lambda _, v: v[0].double(),
}
"""What the operators mean: the oracle of the passes above the kernels, in float64."""


def _interpret(mod: tvm.IRModule, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    from sparseflow.passes.graph import Graph

    graph = Graph(mod)
    known = {p: torch.from_numpy(x).double() for p, x in zip(mod["main"].params, inputs, strict=True)}

    def value(expr: Any) -> Any:
        if isinstance(expr, ir.Var):
            return known[expr]
        if isinstance(expr, ir.GenericConst):
            array = torch.from_numpy(expr.value.numpy())
            return array.double() if array.is_floating_point() else array
        if isinstance(expr, relax.Tuple):
            return [value(item) for item in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.Call):
            return MEANING[expr.op.name](expr, [value(a) for a in expr.args])
        return None

    for binding in graph.bindings:
        known[binding.var] = value(binding.value)
    out = value(graph.output)
    return tuple(np.asarray(t.numpy()) for t in (out if isinstance(out, list | tuple) else [out]))


def _operators(mod: tvm.IRModule) -> list[str]:
    from sparseflow.passes.graph import Graph

    names = []
    for binding in Graph(mod).bindings:
        call = binding.value
        if isinstance(call, relax.Call) and isinstance(call.op, ir.Op):
            kernel = call.op.name == "relax.call_tir"
            names.append(str(call.args[0].name_hint) if kernel else str(call.op.name))
    return names


@pytest.fixture(scope="session")
def build() -> Any:
    """``build({"x": (1, 3, 8, 8)}, lambda bb, x: bb.emit(...))`` gives a module whose ``main`` has that body."""
    return _build


@pytest.fixture(scope="session")
def interpret() -> Any:
    """``interpret(mod, *arrays)``: what ``main`` means, as a tuple of float64 arrays."""
    return _interpret


@pytest.fixture(scope="session")
def operators() -> Any:
    """``operators(mod)``: the operators of ``main`` in order, kernels by their names."""
    return _operators


@pytest.fixture(scope="session")
def engine() -> Any:
    """``engine(mod, threads=1)``: the module through all of our phases, ranked by the cost model."""
    import sparseflow
    from sparseflow.engine.frontends.importer import Imported
    from sparseflow.engine.runtime.manifest import Signature

    def make(mod: tvm.IRModule, threads: int = 1) -> Any:
        main = mod["main"]

        def spec(name: str, ty: Any) -> Signature:
            return Signature(name, tuple(int(n) for n in ty.shape), str(ty.dtype.dtype))

        fields = list(main.ret_ty.fields) if hasattr(main.ret_ty, "fields") else [main.ret_ty]
        inputs = tuple(spec(str(p.name), p.ty) for p in main.params)
        outputs = tuple(spec(f"out{i}", t) for i, t in enumerate(fields))
        return sparseflow.compile(Imported(mod, inputs, outputs), threads=threads, measure=False)

    return make


@pytest.fixture(scope="session")
def inputs_of() -> Any:
    """``inputs_of(mod)``: random inputs of the right shapes."""

    def draw(mod: tvm.IRModule, scale: float = 3.0) -> list[np.ndarray]:
        random = np.random.default_rng(0)
        shapes = [[int(n) for n in p.ty.shape] for p in mod["main"].params]
        return [(scale * random.standard_normal(s)).astype(np.float32) for s in shapes]

    return draw


@pytest.fixture(scope="session")
def close() -> Any:
    """``close(found, expected)``: tuples of arrays equal within 1e-4 of the largest magnitude."""

    def check(found: Any, expected: Any) -> None:
        found = found if isinstance(found, tuple) else (found,)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.shape == theirs.shape
            bound = 1e-4 * max(1.0, float(np.abs(theirs).max()))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound)

    return check


@pytest.fixture(scope="session")
def same(inputs_of: Any, close: Any) -> Any:
    """``same(before, after)``: two modules mean the same."""

    def check(before: tvm.IRModule, after: tvm.IRModule) -> None:
        inputs = inputs_of(before)
        close(_interpret(after, *inputs), _interpret(before, *inputs))

    return check


@pytest.fixture(scope="session")
def agree(engine: Any, inputs_of: Any, close: Any) -> Any:
    """``agree(mod)``: the engine of a module computes what the module means; gives the engine."""

    def check(mod: tvm.IRModule, threads: int = 1) -> Any:
        compiled, inputs = engine(mod, threads), inputs_of(mod)
        close(compiled(*inputs), _interpret(mod, *inputs))
        return compiled

    return check
