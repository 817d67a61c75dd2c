"""How a stage's loads and store move through memory with each axis; axes that move together become one."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import ir, sym, tirx

from .expr import Expr, const, int_value, loads, operands, rewrite, substitute, uses
from .program import Axis, Program, Stage


class Views:
    """One-dimensional views of a program's buffers; temporaries lose their ``rows`` leading dimensions.

    Parameters
    ----------
    program : Program
    rows : int
        Number of leading dimensions over which all stages run together, one index at a time.
    """

    def __init__(self, program: Program, rows: int) -> None:
        self._flat: dict[Any, tuple[Any, int]] = {}
        self.declarations: list[Any] = []
        self.allocations: list[Any] = []
        for buffer in program.params:
            data = tirx.buffer_data(buffer)
            size = prod(int(d) for d in buffer.shape)
            view = tirx.decl_buffer((size,), str(buffer.dtype), f"{buffer.name}_flat", data=data)
            self._flat[buffer] = (view, 0)
            self.declarations.append(tirx.DeclBuffer(view, data=data))
        for buffer in program.temporaries:
            size = prod(int(d) for d in buffer.shape[rows:])
            view = tirx.decl_buffer((size,), str(buffer.dtype), f"{buffer.name}_row")
            self._flat[buffer] = (view, rows)
            self.allocations.append(tirx.AllocBuffer(view))

    def at(self, buffer: Any, indices: Any, index_dtype: str) -> tuple[Any, Expr]:
        """The view of a buffer and the offset in it of one element."""
        view, dropped = self._flat[buffer]
        offset: Expr = const(0, index_dtype)
        for dim, index in list(zip(buffer.shape, indices, strict=True))[dropped:]:
            offset = offset * const(int(dim), index_dtype) + index
        return view, offset


class Nest:
    """A stage over flat views, ready to be given loops.

    Parameters
    ----------
    stage : Stage
    views : Views
    index_dtype : str
    rows : dict
        The row axes' values; the others keep their variables.
    row_axes : tuple of Axis
        The variables in ``rows``' values and their extents.
    """

    def __init__(
        self, stage: Stage, views: Views, index_dtype: str, rows: dict[Any, Expr], row_axes: tuple[Axis, ...]
    ) -> None:
        self.stage = stage
        self.index_dtype = index_dtype
        units = {a.var: const(0, index_dtype) for a in (*stage.spatial, *stage.reduce) if a.extent == 1}
        fixed = {**units, **rows}
        self.spatial = [a for a in stage.spatial if a.var not in fixed]
        self.reduce = [a for a in stage.reduce if a.var not in fixed]
        self._row_axes = row_axes

        def flatten(node: Expr) -> Expr | None:
            if not isinstance(node, ir.TensorLoad):
                return None
            view, offset = views.at(node.source, node.indices, index_dtype)
            return tirx.BufferLoad(view, [self._simple(offset)])

        self.value = rewrite(substitute(stage.value, fixed), flatten)
        self.init = None if stage.init is None else rewrite(substitute(stage.init, fixed), flatten)
        indices = [substitute(i, fixed) for i in stage.indices]
        self.out, offset = views.at(stage.out, indices, index_dtype)
        self.offset = self._simple(offset)
        self.spatial = self._merged(self.spatial)
        self.reduce = self._merged(self.reduce)

    def analyzer(self, *extra: Axis) -> Any:
        """A fresh analyzer that knows the extents of all axes."""
        known = sym.Analyzer()
        for axis in (*self._row_axes, *self.spatial, *self.reduce, *extra):
            known.bind(axis.var, ir.Range(const(0, self.index_dtype), const(axis.extent, self.index_dtype)))
        return known

    def _simple(self, offset: Expr) -> Expr:
        return self.analyzer().simplify(offset)

    def accesses(self) -> list[Expr]:
        """The offsets of the store (first) and of all loads."""
        return [self.offset, *(n.indices[0] for n in loads(self.value))]

    def is_loose(self, axis: Axis) -> bool:
        """Whether an axis is used for more than addressing, as in a padding's condition."""
        return _outside_loads(self.value, axis.var)

    def _merged(self, axes: list[Axis]) -> list[Axis]:
        """Neighbouring axes along which every access moves as if they were one."""
        done: list[Axis] = []
        for axis in axes:
            if done and self._moves_as_one(done[-1], axis):
                outer = done.pop()
                gone = {outer.var: const(0, self.index_dtype)}
                self.value = substitute(self.value, gone)
                self.offset = substitute(self.offset, gone)
                axis = Axis(axis.var, axis.extent * outer.extent)
            done.append(axis)
        return done

    def _moves_as_one(self, outer: Axis, inner: Axis) -> bool:
        if self.is_loose(outer) or self.is_loose(inner):
            return False
        for access in self.accesses():
            slow, fast = coefficient(access, outer), coefficient(access, inner)
            if slow is None or fast is None or slow != fast * inner.extent:
                return False
        return True


def _outside_loads(expr: Expr, var: Any) -> bool:
    if isinstance(expr, ir.TensorLoad):
        return False
    if isinstance(expr, ir.Var):
        return bool(expr.same_as(var))
    return any(_outside_loads(p, var) for p in operands(expr))


def coefficient(access: Expr, axis: Axis) -> int | None:
    """Elements by which an offset moves for each step of an axis; ``None`` if that varies."""
    if not uses(access, axis.var):
        return 0
    found = sym.detect_linear_equation(access, [axis.var])
    return int_value(found[0]) if found else None


SKIP = 3.0
"""Cost of each second element of two vectors, in vector instructions."""
GATHER = 1.0
"""Cost of one lane of a load or store that is contiguous in no way."""
FOLD = 12.0
"""Cost of combining the lanes of one register."""


def vector_axis(nest: Nest, lanes: int) -> Axis | None:
    """The axis along which vectors cost least, the innermost of equals; ``None`` without axes."""
    best: tuple[float, Axis] | None = None
    reduced = {a.var for a in nest.reduce}
    window = prod(a.extent for a in nest.reduce)
    for axis in (*nest.spatial, *nest.reduce):
        costs = [_cost(coefficient(access, axis), lanes) for access in nest.accesses()]
        store = 0.0 if axis.var in reduced else costs[0] / window
        cost = (store + sum(costs[1:])) / (axis.extent / -(-axis.extent // lanes))
        cost += FOLD / axis.extent if axis.var in reduced else 0.0
        if best is None or cost <= best[0]:
            best = (cost, axis)
    return best[1] if best else None


def _cost(step: int | None, lanes: int) -> float:
    """Vector instructions for one load or store of a vector whose lanes are ``step`` elements apart."""
    if step == 0:
        return 0.2
    if step == 1:
        return 1.0
    return SKIP if step == 2 else GATHER * lanes
