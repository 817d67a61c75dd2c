"""Schedule rules in the manner of ``tvm.s_tir.dlight``: one class, one method, the order is data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import tvm
from tvm import ir, relax, s_tir, tirx

from .access import Nest, Views, vector_axis
from .expr import Expr, loads
from .injective import InjectiveLoops
from .loops import sequence, shared_loop
from .program import Axis, Program, Unsuitable, inlined, parse
from .reductions import ReductionLoops

PARALLEL_SIZE = 65536
"""Fewest evaluations for which waking the threads pays: a launch takes microseconds."""
NEAR = 4
"""A stage this many times smaller than the largest has no say in the loop order."""


@dataclass(frozen=True)
class Resources:
    """Vectors and threads that a schedule may use.

    Parameters
    ----------
    vector_lanes : int
        Elements of a vector register.
    threads : int
    """

    vector_lanes: int
    threads: int = 1

    def threads_for(self, size: int) -> int:
        """Threads worth using for ``size`` evaluations."""
        return self.threads if size >= PARALLEL_SIZE else 1


class Rule(Protocol):
    """One way to schedule a function."""

    def apply(self, func: tirx.PrimFunc, cpu: Resources) -> tirx.PrimFunc:
        """The scheduled function, or ``Unsuitable`` with a reason."""


def _function(func: tirx.PrimFunc, body: list[Any]) -> tirx.PrimFunc:
    """``func`` with new loops, under the root block that Relax's passes look for."""
    root = s_tir.SBlock([], [], [], "root", sequence(body))
    return func.with_body(s_tir.SBlockRealize([], True, root))


def _loops(nest: Nest, lanes: int, threads: int) -> Any:
    """The loops of one stage."""
    kind = ReductionLoops if nest.stage.combine else InjectiveLoops
    return kind(nest, vector_axis(nest, lanes), lanes, threads).statement()


def shared_rows(program: Program, lanes: int) -> int:
    """Number of leading axes over which all stages may run together, index by index.

    Every use of a temporary must then be at the index that was just computed, and the axis along which a
    large stage is contiguous must stay inside.
    """
    count = min(len(s.spatial) for s in program.stages)
    extents = [a.extent for a in program.stages[0].spatial]
    for stage in program.stages:
        for k in range(count):
            if stage.spatial[k].extent != extents[k]:
                count = k
                break
        used = [(stage.out, stage.indices)] + [(n.source, n.indices) for n in loads(stage.value)]
        for buffer, indices in used:
            if buffer not in program.outputs:
                continue
            count = min(count, len(indices))
            for k in range(count):
                if not (isinstance(indices[k], ir.Var) and indices[k].same_as(stage.spatial[k].var)):
                    count = k
                    break
    largest = max(s.size for s in program.stages)
    views = Views(program, 0)
    for stage in program.stages:
        if stage.size * NEAR < largest:
            continue
        axis = vector_axis(Nest(stage, views, program.index_dtype, {}, ()), lanes)
        for k in range(count):
            if axis is not None and axis.var.same_as(stage.spatial[k].var):
                count = k
                break
    return count


class ReshapeRule:
    """A plain reshape: kept, for Relax then makes it a view that copies nothing."""

    def apply(self, func: tirx.PrimFunc, cpu: Resources) -> tirx.PrimFunc:
        try:
            keeps = relax.analysis.has_reshape_pattern(func)
        except tvm.error.TVMError as error:
            raise Unsuitable("the function has no root block") from error
        if not keeps:
            raise Unsuitable("the function is not a reshape")
        return func


class RowsRule:
    """Several stages with common leading axes: all of them for one row, while it is in the cache.

    Softmax, normalisation, pooling with its padding, reductions with what follows them.
    """

    def apply(self, func: tirx.PrimFunc, cpu: Resources) -> tirx.PrimFunc:
        program = inlined(parse(func))
        if len(program.stages) == 1:
            raise Unsuitable("there is one stage only")
        rows = shared_rows(program, cpu.vector_lanes)
        extents = [a.extent for a in program.stages[0].spatial[:rows]]
        count = prod(extents)
        if count == 1:
            raise Unsuitable("the stages have no rows in common")
        views = Views(program, rows)
        dtype = program.index_dtype
        row_axis = Axis(tirx.Var("row", dtype), count)

        def body(row: Expr) -> Any:
            done = []
            for stage in program.stages:
                left, at = count, {}
                for axis, extent in zip(stage.spatial[:rows], extents, strict=True):
                    left //= extent
                    index = row_axis.var // left if left > 1 else row_axis.var
                    at[axis.var] = index % extent if left * extent < count else index
                nest = Nest(stage, views, dtype, at, (row_axis,))
                done.append(_loops(nest, cpu.vector_lanes, 1))
            return tirx.SeqStmt([tirx.Bind(row_axis.var, row), *views_inside, *done])

        threads = cpu.threads_for(program.size)
        views_inside = views.allocations if threads > 1 else []
        outside = [] if threads > 1 else views.allocations
        return _function(func, [*views.declarations, *outside, shared_loop(count, threads, body, dtype)])


class StagesRule:
    """Any number of stages, one after the other, each with its own loops."""

    def apply(self, func: tirx.PrimFunc, cpu: Resources) -> tirx.PrimFunc:
        program = inlined(parse(func))
        views = Views(program, 0)
        done = []
        for stage in program.stages:
            nest = Nest(stage, views, program.index_dtype, {}, ())
            done.append(_loops(nest, cpu.vector_lanes, cpu.threads_for(stage.size)))
        return _function(func, [*views.declarations, *views.allocations, *done])


RULES: tuple[Rule, ...] = (ReshapeRule(), RowsRule(), StagesRule())
"""The rules in the order in which they are tried."""
