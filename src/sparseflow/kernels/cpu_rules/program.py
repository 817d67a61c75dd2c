"""A PrimFunc as a list of stages: what each buffer's element is, without any loop order.

Only the form that TVM's legaliser and fusion produce is read: one block per buffer under a perfect loop nest.
All else is rejected with a reason and left as it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from tvm import ir, s_tir, tirx
from tvm.ir.prim import expr as prim

from .expr import Expr, calls, depth, equal, int_value, loads, rewrite, substitute, walk

EXPENSIVE = frozenset(
    f"tirx.{name}"
    for name in (
        *("exp", "exp2", "exp10", "erf", "tanh", "sigmoid", "log", "log2", "log10", "log1p", "pow"),
        *("sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan"),
    )
)
"""Operators that cost more than a load."""
MAX_NODES = 600
"""Largest size of an expression that inlining may make."""
MAX_DEPTH = 100
"""Longest chain that inlining may make."""
MAX_PARSED_DEPTH = 250
"""Deepest expression that is scheduled at all, as of a concatenation; rewriting recurses, two frames a level."""


class Unsuitable(Exception):
    """Why a rule cannot schedule a function; the reason is the message."""


@dataclass(frozen=True)
class Axis:
    """One iteration variable.

    Parameters
    ----------
    var : tvm.ir.Var
    extent : int
    """

    var: Any
    extent: int


@dataclass(frozen=True)
class Stage:
    """``out[indices] = value``, or ``out[indices] = combine over reduce of value``, for all spatial axes.

    Parameters
    ----------
    spatial, reduce : tuple of Axis
    out : tvm.tirx.Buffer
    indices : tuple of Expr
        In the spatial axes.
    value : Expr
        One element, or one summand of a reduction.
    combine : {"add", "max", "min", "mul"} or None
    init : Expr or None
        A reduction's starting value.
    """

    spatial: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    out: Any
    indices: tuple[Expr, ...]
    value: Expr
    combine: str | None = None
    init: Expr | None = None

    @property
    def size(self) -> int:
        """Number of evaluations of ``value``."""
        return prod(a.extent for a in (*self.spatial, *self.reduce))

    @cached_property
    def nodes(self) -> int:
        """Size of ``value``."""
        return sum(1 for _ in walk(self.value))

    @cached_property
    def depth(self) -> int:
        """Longest chain in ``value``."""
        return depth(self.value)

    @cached_property
    def called(self) -> set[str]:
        """Operators called in ``value``."""
        return calls(self.value)

    @cached_property
    def reads(self) -> dict[Any, list[Expr]]:
        """The loads in ``value`` of each buffer."""
        found: dict[Any, list[Expr]] = {}
        for node in loads(self.value):
            found.setdefault(node.source, []).append(node)
        return found


@dataclass(frozen=True)
class Program:
    """The stages of a function in order, its parameters and its intermediate buffers."""

    stages: tuple[Stage, ...]
    params: tuple[Any, ...]
    temporaries: tuple[Any, ...]
    index_dtype: str

    @property
    def size(self) -> int:
        """Evaluations of all stages together."""
        return sum(s.size for s in self.stages)

    @cached_property
    def outputs(self) -> frozenset[Any]:
        """The buffers that the stages store to."""
        return frozenset(s.out for s in self.stages)


_COMBINERS = {prim.Add: "add", prim.Max: "max", prim.Min: "min", prim.Mul: "mul"}


def parse(func: tirx.PrimFunc) -> Program:
    """The stages of a function.

    Raises
    ------
    Unsuitable
        If the function has another form, or a size that is not known.
    """
    root = func.body
    if not isinstance(root, s_tir.SBlockRealize) or len(root.iter_values):
        raise Unsuitable("the function has no root block")
    body = root.block.body
    nests = list(body) if isinstance(body, tirx.SeqStmt) else [body]
    stages = tuple(_parse_stage(nest) for nest in nests)
    if len({s.out for s in stages}) < len(stages):
        raise Unsuitable("two loop nests store to one buffer")
    deepest = max(s.depth for s in stages)
    if deepest > MAX_PARSED_DEPTH:
        raise Unsuitable(f"an expression nests {deepest} deep; {MAX_PARSED_DEPTH} are allowed")
    for buffer in (*func.params, *root.block.alloc_buffers):
        if not tirx.is_buffer_var(buffer) or any(int_value(d) is None for d in buffer.shape):
            raise Unsuitable("a buffer's shape is not constant")
        if len(buffer.strides):
            raise Unsuitable("a buffer is strided")
    dtypes = {str(a.var.ty.dtype) for s in stages for a in (*s.spatial, *s.reduce)}
    if len(dtypes) > 1:
        raise Unsuitable("the loops' index types differ")
    return Program(
        stages, tuple(func.params), tuple(root.block.alloc_buffers), dtypes.pop() if dtypes else "int64"
    )


def _parse_stage(nest: Any) -> Stage:
    """One perfect loop nest around one block."""
    loops: list[Any] = []
    while isinstance(nest, tirx.For):
        loops.append(nest)
        nest = nest.body
    if not isinstance(nest, s_tir.SBlockRealize):
        raise Unsuitable("a loop nest holds more than one block")
    block = nest.block
    if int_value(nest.predicate) != 1 or len(block.alloc_buffers) or len(block.match_buffers):
        raise Unsuitable("a block has a predicate or buffers of its own")
    if not isinstance(block.body, tirx.BufferStore):
        raise Unsuitable("a block does not store exactly one value")
    left = [loop.loop_var for loop in loops]
    spatial: list[Axis] = []
    reduce: list[Axis] = []
    for axis, value in zip(block.iter_vars, nest.iter_values, strict=True):
        extent = int_value(axis.dom.extent)
        if not extent or int_value(axis.dom.min) != 0:
            raise Unsuitable("a loop's extent is zero or not constant")
        bound = [v for v in left if isinstance(value, ir.Var) and v.same_as(value)]
        if not bound and (int_value(value) != 0 or extent != 1):
            raise Unsuitable("a block's axis is not a loop")
        left = [v for v in left if not bound or not v.same_as(bound[0])]
        is_reduction = axis.iter_type == tirx.IterVar.CommReduce
        (reduce if is_reduction else spatial).append(Axis(axis.var, extent))
    if any(int_value(loop.extent) != 1 for loop in loops if any(loop.loop_var.same_as(v) for v in left)):
        raise Unsuitable("a loop is bound to no axis")
    return _stage_of(block, tuple(spatial), tuple(reduce))


def _stage_of(block: Any, spatial: tuple[Axis, ...], reduce: tuple[Axis, ...]) -> Stage:
    store = block.body
    indices = tuple(store.indices)
    reads_itself = any(n.source.same_as(store.buffer) for n in loads(store.value))
    if block.init is None and not reduce and not reads_itself:
        return Stage(spatial, (), store.buffer, indices, store.value)
    combine = _COMBINERS.get(type(store.value))
    if combine is None or not isinstance(block.init, tirx.BufferStore):
        raise Unsuitable("a reduction is not a sum, product, maximum or minimum")
    for mine, other in ((store.value.a, store.value.b), (store.value.b, store.value.a)):
        if isinstance(mine, ir.TensorLoad) and mine.source.same_as(store.buffer):
            same = all(equal(a, b) for a, b in zip(mine.indices, indices, strict=True))
            if same and not any(n.source.same_as(store.buffer) for n in loads(other)):
                return Stage(spatial, reduce, store.buffer, indices, other, combine, block.init.value)
    raise Unsuitable("a reduction does not accumulate into its own element")


def _inline(producer: Stage, consumer: Stage) -> Stage:
    """``consumer`` with each load of ``producer``'s buffer replaced by the value it holds."""

    def change(node: Expr) -> Expr | None:
        if not isinstance(node, ir.TensorLoad) or not node.source.same_as(producer.out):
            return None
        at = {a.var: i for a, i in zip(producer.spatial, node.indices, strict=True)}
        return substitute(producer.value, at)

    return dataclasses.replace(consumer, value=rewrite(consumer.value, change))


def _worth(producer: Stage, consumers: list[Stage]) -> bool:
    """Whether computing ``producer`` at each of its uses costs less than storing it."""
    if producer.combine or not consumers:
        return False
    trivial = len(producer.indices) == len(producer.spatial) and all(
        isinstance(i, ir.Var) and i.same_as(a.var)
        for i, a in zip(producer.indices, producer.spatial, strict=True)
    )
    if not trivial:
        return False
    expensive = bool(producer.called & EXPENSIVE)
    if "prim.if_then_else" in producer.called and any(c.reduce for c in consumers):
        return False  # padding: tested once per element rather than once per window
    if expensive and (len(consumers) > 1 or producer.size < max(c.size for c in consumers)):
        return False
    if any(c.nodes + producer.nodes * len(c.reads[producer.out]) > MAX_NODES for c in consumers):
        return False
    if any(c.depth + producer.depth > MAX_DEPTH for c in consumers):
        return False
    for consumer in consumers:
        found = consumer.reads[producer.out]
        if expensive and any(not equal(a, found[0]) for a in found[1:]):
            return False
    return True


def inlined(program: Program) -> Program:
    """``program`` without the stages that are cheaper computed again than stored."""
    stages: dict[Any, Stage] = {s.out: s for s in program.stages}
    readers: dict[Any, dict[Any, None]] = {s.out: {} for s in program.stages}
    for stage in program.stages:
        for buffer in stage.reads:
            readers.setdefault(buffer, {})[stage.out] = None
    temporaries = set(program.temporaries)
    for producer in [s.out for s in program.stages if s.out in temporaries]:
        stage = stages[producer]
        consumers = [stages[out] for out in readers[producer]]
        if _worth(stage, consumers):
            del stages[producer]
            for consumer in consumers:
                stages[consumer.out] = _inline(stage, consumer)
            for buffer in stage.reads:
                del readers[buffer][producer]
                readers[buffer].update(readers[producer])
    left = tuple(t for t in program.temporaries if t in stages)
    return dataclasses.replace(program, stages=tuple(stages.values()), temporaries=left)
