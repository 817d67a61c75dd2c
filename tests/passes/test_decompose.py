"""Decomposed operators give what they gave before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from sparseflow.passes.decompose import Decompose

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v4"})


def _module(make: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(s, "float32")) for i, s in enumerate(shapes)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(make(builder.emit, *params))
        builder.emit_func_output(out)
    return builder.get()


def _operators(module: Any) -> set[str]:
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op):
            found.add(node.op.name)

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def _run(module: Any, *inputs: np.ndarray) -> np.ndarray:
    machine = relax.VirtualMachine(tvm.compile(module, target=TARGET), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()


def _compare(make: Callable[..., Any], *shapes: tuple[int, ...]) -> set[str]:
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(s).astype("float32") for s in shapes]
    before = _module(make, *shapes)
    after = Decompose()(before)
    np.testing.assert_allclose(_run(after, *inputs), _run(before, *inputs), atol=2e-6, rtol=1e-5)
    return _operators(after)


@pytest.mark.parametrize("causal", [None, "TopLeft", "BottomRight"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(causal: str | None, scale: float | None) -> None:
    def make(emit: Any, q: Any, k: Any, v: Any) -> Any:
        return relax.op.nn.attention(q, k, v, scale=scale, causal_mask=causal)

    found = _compare(make, (2, 5, 3, 7), (2, 11, 3, 7), (2, 11, 3, 7))
    assert "relax.nn.attention" not in found
    assert {"relax.matmul", "relax.nn.softmax", "relax.permute_dims"} <= found


def test_attention_with_bias() -> None:
    def make(emit: Any, q: Any, k: Any, v: Any, bias: Any) -> Any:
        return relax.op.nn.attention(q, k, v, bias=bias)

    found = _compare(make, (1, 5, 2, 8), (1, 6, 2, 8), (1, 6, 2, 8), (1, 2, 5, 6))
    assert "relax.nn.attention_bias" not in found


@pytest.mark.parametrize("operator", [relax.op.multiply, relax.op.divide])
def test_scalar_meets_the_smaller_operand(operator: Callable[..., Any]) -> None:
    def make(emit: Any, a: Any, b: Any) -> Any:
        return operator(emit(relax.op.matmul(a, b)), relax.const(0.37, "float32"))

    module = Decompose()(_module(make, (2, 13, 3), (2, 3, 17)))
    last = module["main"].body.blocks[0].bindings[-1].value
    assert last.op.name == "relax.matmul"
    assert "relax.divide" not in _compare(make, (2, 13, 3), (2, 3, 17))


def test_scalar_stays_where_the_product_is_smaller() -> None:
    def make(emit: Any, a: Any, b: Any) -> Any:
        return relax.op.multiply(emit(relax.op.matmul(a, b)), relax.const(0.37, "float32"))

    module = Decompose()(_module(make, (2, 31), (31, 3)))
    assert module["main"].body.blocks[0].bindings[-1].value.op.name == "relax.multiply"


def test_shared_product_is_not_computed_twice() -> None:
    def make(emit: Any, a: Any, b: Any) -> Any:
        product = emit(relax.op.matmul(a, b))
        return relax.op.add(product, emit(relax.op.multiply(product, relax.const(0.37, "float32"))))

    module = Decompose()(_module(make, (2, 13, 3), (2, 3, 17)))
    values = [b.value.op.name for b in module["main"].body.blocks[0].bindings if hasattr(b.value, "op")]
    assert values.count("relax.matmul") == 1
