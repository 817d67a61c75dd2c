"""Attention between layers that write lanes becomes one operator, so that no head is ever cut out or turned.

What is recognised: ``matmul(softmax(matmul(q, kᵀ) · scale + mask), v)`` where q, k and v are views (reshape, permute,
split) of linear layers' results, and the views after it put the heads side by side again. Views are not matched by
their form: the indices of the elements are sent through them and compared with what attention means, so any way of
writing it is found, and nothing else. What does not match keeps its matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.kernels.ir.math import F32
from sparseflow.kernels.lane.attention import Attention
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.workload import Array
from sparseflow.ops.expressions import op_name, scalar, shape_of
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.ops import LayerAttrs, attention_call, is_layer

Expr = Any
RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")


@tvm.transform.module_pass(opt_level=0, name="sparseflow.FuseAttention")
class FuseAttention:
    """Writes ``sparseflow.attention`` for every attention whose operands come from layers in lanes.

    It runs after the plan: only then is it known which layers write lanes.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        graph = Graph(mod)
        matches = [_match(graph, b.var) for b in graph.bindings if op_name(b.value) == "relax.nn.softmax"]
        found = {m.out: m for m in matches if m is not None}
        if not found:
            return mod

        def visit(rebuild: Rebuild, var: Expr, _value: Expr) -> Any:
            return _emit(rebuild, found[var]) if var in found else None

        return relax.transform.DeadCodeElimination()(Rebuild(mod).run(visit))


@dataclass(frozen=True)
class _View:
    """Elements of ``source`` (flat indices) in another order, times ``scale``."""

    source: Expr
    index: Array
    scale: float = 1.0


@dataclass(frozen=True)
class _Match:
    """An attention: its parameters, operands, and the variable that holds the result with the heads joined."""

    shape: Attention
    operands: tuple[Expr, Expr, Expr]
    mask: Expr | None
    out: Expr


def _emit(rebuild: Rebuild, match: _Match) -> Expr:
    shape = match.shape
    features = shape.heads * shape.size
    operands = []
    for var, tokens in zip(match.operands, (shape.queries, shape.keys, shape.keys), strict=True):
        new, wanted = rebuild.old(var), (shape.batch, tokens, shape_of(var)[-1])
        operands.append(new if shape_of(new) == wanted else rebuild.emit(relax.op.reshape(new, wanted)))
    masks = [] if match.mask is None else [rebuild.old(match.mask)]
    masks = [m if shape_of(m) == shape.mask else rebuild.emit(relax.op.reshape(m, shape.mask)) for m in masks]
    out = (shape.batch, shape.queries, features)
    joined = attention_call(shape, operands, relax.Tuple(masks), out)
    if shape_of(match.out) == out:
        return joined
    return relax.op.reshape(rebuild.emit(joined), shape_of(match.out))


def _match(graph: Graph, softmax: Expr) -> _Match | None:
    call = graph.definition[softmax]
    scores, rank = call.args[0], len(shape_of(softmax))
    mixed = graph.only_user(softmax)
    if rank not in (3, 4) or int(call.attrs.axis) % rank != rank - 1 or mixed is None:
        return None
    product = graph.definition[mixed]
    if op_name(product) != "relax.matmul" or product.args[0] != softmax:
        return None
    unmasked, mask = _masked(graph, scores)
    dots = _scaled(graph, unmasked)
    if dots is None:
        return None
    q, k, v = (_view(graph, e) for e in (*dots.args, product.args[1]))
    if any(view.index.ndim != rank or not _in_lanes(graph, view.source) for view in (q, k, v)):
        return None
    shape = _shape(q, k, v, _scale_of(graph, unmasked))
    if shape is None or v.scale != 1.0:
        return None
    if mask is not None:
        sizes = _mask_shape(mask, q.source, shape, rank)
        if sizes is None:
            return None
        shape = replace(shape, mask=sizes)
    out = _joined(graph, mixed, shape)
    return None if out is None else _Match(shape, (q.source, k.source, v.source), mask, out)


def _factor(graph: Graph, value: Expr) -> tuple[Expr, float] | None:
    """``x`` and ``c`` of ``x * c`` or ``x / c``."""
    name = op_name(value)
    if name not in ("relax.multiply", "relax.divide"):
        return None
    for x, c in (value.args, reversed(value.args)) if name == "relax.multiply" else (value.args,):
        factor = scalar(graph.value(c))
        if factor and shape_of(x) == tuple(int(d) for d in value.ty.shape):
            return x, factor if name == "relax.multiply" else 1.0 / factor
    return None


def _masked(graph: Graph, scores: Expr) -> tuple[Expr, Expr | None]:
    """The scores before the mask, and the mask."""
    value = graph.value(scores)
    if op_name(value) == "relax.add":
        for x, mask in (value.args, tuple(reversed(value.args))):
            if _scaled(graph, x) is not None and shape_of(x) == shape_of(scores):
                return x, mask
    return scores, None


def _scaled(graph: Graph, expr: Expr) -> Expr | None:
    """The product of queries and keys under scalar factors; None if there is something else."""
    value = graph.value(expr)
    while (step := _factor(graph, value)) is not None:
        value = graph.value(step[0])
    return value if op_name(value) == "relax.matmul" else None


def _scale_of(graph: Graph, expr: Expr) -> float:
    scale, value = 1.0, graph.value(expr)
    while (step := _factor(graph, value)) is not None:
        scale, value = scale * step[1], graph.value(step[0])
    return scale


def _view(graph: Graph, expr: Expr) -> _View:
    """Where each element of ``expr`` comes from."""
    value = graph.value(expr)
    if isinstance(value, relax.TupleGetItem):
        split = graph.value(value.tuple_value)
        if op_name(split) == "relax.split":
            view = _view(graph, split.args[0])
            sections = split.attrs.indices_or_sections
            cuts = int(sections) if not hasattr(sections, "__len__") else [int(i) for i in sections]
            return replace(view, index=np.split(view.index, cuts, int(split.attrs.axis))[value.index])
    name = op_name(value)
    if name in RESHAPES:
        view = _view(graph, value.args[0])
        return replace(view, index=view.index.reshape(shape_of(expr)))
    if name == "relax.permute_dims":
        view = _view(graph, value.args[0])
        axes = value.attrs.axes
        return replace(view, index=view.index.transpose(None if axes is None else [int(a) for a in axes]))
    step = _factor(graph, value)
    if step is not None:
        view = _view(graph, step[0])
        return replace(view, scale=view.scale * step[1])
    sizes = shape_of(expr)
    return _View(expr, np.arange(math.prod(sizes), dtype=np.int64).reshape(sizes))


def _in_lanes(graph: Graph, var: Expr) -> bool:
    """True for a linear layer whose kernel writes lanes, in the type that the attention kernel computes in."""
    value = graph.value(var)
    if not is_layer(value) or len(shape_of(var)) < 2 or var.ty.dtype != F32:
        return False
    attrs = LayerAttrs.of(value)
    template = Candidate.from_json(attrs.candidate).template
    return attrs.workload.op == "linear" and TEMPLATES[template].layout == "lanes"


def _shape(q: _View, k: _View, v: _View, scale: float) -> Attention | None:
    """The parameters if the three views are heads of (batch, tokens, features) matrices."""
    queries, size, keys = q.index.shape[-2], q.index.shape[-1], k.index.shape[-1]
    leading = q.index.shape[:-2]
    if len(leading) == 2:
        batch, heads = leading
    else:
        heads = shape_of(q.source)[-1] // size
        if not heads or leading[0] % heads:
            return None
        batch = leading[0] // heads
    turned = replace(k, index=np.swapaxes(k.index, -1, -2))
    first = [_first(x, (batch, heads, t, size)) for x, t in ((q, queries), (turned, keys), (v, keys))]
    if any(f is None for f in first):
        return None
    a, b, c = (int(f) for f in first if f is not None)
    return Attention(batch, heads, size, queries, keys, scale * q.scale * k.scale, (a, b, c))


def _first(view: _View, shape: tuple[int, int, int, int]) -> int | None:
    """The first feature of a (batch, heads, tokens, size) view of a (batch * tokens, features) matrix; None if none."""
    batch, heads, tokens, size = shape
    features = shape_of(view.source)[-1]
    first = int(view.index.reshape(-1)[0])
    if math.prod(shape_of(view.source)) != batch * tokens * features or view.index.size != math.prod(shape):
        return None
    n, h, t, d = np.ix_(*(np.arange(s) for s in shape))
    wanted = (n * tokens + t) * features + first + h * size + d
    same = first + heads * size <= features and np.array_equal(view.index.reshape(shape), wanted)
    return first if same else None


def _mask_shape(mask: Expr, x: Expr, shape: Attention, rank: int) -> tuple[int, ...] | None:
    """The mask's shape with four dimensions; None if the kernel of ``x`` cannot read it."""
    if mask.ty.dtype != x.ty.dtype:
        return None
    sizes = shape_of(mask)
    if rank == 3:  # images and heads in one dimension: only what is the same for all
        if math.prod(sizes[:-2]) != 1:
            return None
        sizes = sizes[-2:]
    sizes = (1,) * (4 - len(sizes)) + sizes
    full = (shape.batch, shape.heads, shape.queries, shape.keys)
    fits = all(s in (1, f) for s, f in zip(sizes, full, strict=True)) and sizes[3] == shape.keys
    return sizes if fits else None


def _joined(graph: Graph, mixed: Expr, shape: Attention) -> Expr | None:
    """The variable after ``mixed`` in which each token holds its heads side by side."""
    sizes = (shape.batch, shape.heads, shape.queries, shape.size)
    index = np.arange(math.prod(sizes), dtype=np.int64)
    wanted = index.reshape(sizes).transpose(0, 2, 1, 3).reshape(-1)
    index, var = index.reshape(shape_of(mixed)), mixed
    while True:
        same = shape_of(var)[-1] == shape.heads * shape.size
        if same and np.array_equal(index.reshape(-1), wanted):
            return var
        user = graph.only_user(var)
        value = None if user is None else graph.definition[user]
        if value is None or op_name(value) not in (*RESHAPES, "relax.permute_dims"):
            return None
        if op_name(value) == "relax.permute_dims":
            axes = value.attrs.axes
            index = index.transpose(None if axes is None else [int(a) for a in axes])
        else:
            index = index.reshape(shape_of(user))
        var = user
