"""Lets as registers, and how large an expression may be once they are written out."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.ir.prim import expr as prim

from sparseflow.kernels.cpu_rules import Unsuitable, fast_math
from sparseflow.kernels.cpu_rules.expr import walk
from sparseflow.kernels.cpu_rules.registers import Registers, written_out


def _nested(x: object, times: int) -> object:
    for _ in range(times):
        x = fast_math.tanh(x)
    return x


def _stored(value: object) -> tuple[Registers, list[object]]:
    out, lane = tirx.decl_buffer((16,), "float32", "out"), tirx.Var("lane", "int64")
    registers = Registers(16)
    return registers, registers.store(tirx.BufferStore(out, value, [lane]), lane)


def test_no_let_is_left_and_the_size_grows_linearly() -> None:
    x = tirx.Var("x", "float32")
    sizes = []
    for times in (1, 2, 4):
        registers, statements = _stored(_nested(x, times))
        nodes = [node for s in statements for node in walk(s.value)]
        assert not any(isinstance(node, prim.Let) for node in nodes)
        assert len(registers.allocations()) == len(statements) - 1
        sizes.append(len(nodes))
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)
    assert sizes[2] == pytest.approx(4 * sizes[0], rel=0.1)


def test_written_out_counts_what_tvm_sees() -> None:
    x, v = tirx.Var("x", "float32"), tirx.Var("v", "float32")
    assert written_out(x + x) == 3
    assert written_out(prim.Let(v, x + x, v * v)) == 7
    assert written_out(_nested(x, 3)) > 10**8


def test_a_branch_keeps_its_lets_or_is_refused() -> None:
    x, condition = tirx.Var("x", "float32"), tirx.Var("c", "bool")
    zero = tirx.const(0.0, "float32")
    registers, (statement,) = _stored(tirx.if_then_else(condition, fast_math.exp(x), zero))
    assert not registers.allocations()
    assert any(isinstance(node, prim.Let) for node in walk(statement.value))
    with pytest.raises(Unsuitable, match=r"a condition guards functions of .* terms; 20000 are allowed"):
        _stored(tirx.if_then_else(condition, _nested(x, 3), zero))
