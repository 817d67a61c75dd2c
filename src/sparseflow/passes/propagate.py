"""Phase 2: what cannot matter is cut out of the tensors, forward and backward through the graph.

A filter without weights makes a constant channel: its response joins the biases of those who read it. A channel that
nobody reads needs no filter. What is left is cut: fewer filters, fewer input channels, narrower feature maps.
The two sides of a residual add are free to hold different channels: the sum holds their union, and an index says for
each of its channels where the residual has it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.core.codec import dumps, loads
from sparseflow.core.plan import Cut
from sparseflow.kernels.workload import Array, Workload
from sparseflow.ops.expressions import is_constant, op_name, shape_of
from sparseflow.passes.channels import Channels, Layer
from sparseflow.passes.demand import Demand
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.ops import constant, layer_call, weight_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Propagate")
class Propagate:
    """Cuts out the filters and channels that cannot matter.

    Before: ``conv2d(x[64], (w[64, 64, 3, 3],), …)`` of which half the filters are zero. After: ``conv2d(x[64],
    (w[32, 64, 3, 3],), …)``, and its readers' weights have 32 input channels. The module's attribute
    ``sparseflow.cuts`` tells what each layer lost: `cuts_of` reads it.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class; a module that was gone over before is left as it is."""
        return mod if cuts_of(mod) else _Cutting(mod).run()


def cuts_of(mod: tvm.IRModule) -> tuple[Cut, ...]:
    """What `Propagate` took from the layers of a module that it has gone over."""
    text = (mod.attrs or {}).get("sparseflow.cuts")
    return loads(tuple[Cut, ...], str(text)) if text else ()


class _Cutting:
    """One run: what is known of the channels, which are kept, and what was cut so far."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.graph = Graph(mod)
        self.channels = Channels.of(self.graph)
        self.demand = Demand.of(self.channels)
        self.cuts: list[Cut] = []

    def run(self) -> tvm.IRModule:
        """The cut module; the same module if there is nothing to cut."""
        mod = Rebuild(self.mod).run(self._visit)
        if not self.cuts:
            return self.mod
        mod = relax.transform.DeadCodeElimination()(mod)
        return mod.with_attr("sparseflow.cuts", dumps(self.cuts))

    def _visit(self, rebuild: Rebuild, var: Expr, value: Expr) -> Any:
        if var in self.channels.layers:
            return self._layer(rebuild, var, value)
        if var not in self.channels.links:
            return None
        return self._link(rebuild, var, value) if len(self.demand.keep[var]) else Rebuild.DROP

    def _link(self, rebuild: Rebuild, var: Expr, value: Expr) -> Expr:
        keep, axis, count = self.demand.keep[var], self.channels.axis[var], self.channels.count[var]
        name = op_name(value)
        if len(keep) == count:
            return None
        if name == "relax.concat":
            left = [rebuild.old(v) for v in value.args[0].fields if len(self.demand.keep[v])]
            return left[0] if len(left) == 1 else relax.op.concat(left, axis=axis)
        if name == "relax.reshape":
            shape = list(shape_of(var))
            shape[axis] = len(keep)
            return relax.op.reshape(rebuild.old(value.args[0]), shape)
        rank = len(shape_of(var))
        operands = [
            _sliced(a, keep, axis - rank, count) if is_constant(a) else rebuild.old(a) for a in value.args
        ]
        return relax.Call(value.op, operands, value.attrs, value.ty_args)

    def _layer(self, rebuild: Rebuild, var: Expr, value: Expr) -> Any:
        layer, rows = self.channels.layers[var], self.demand.keep[var]
        if not len(rows):
            self.cuts.append(_record(layer, value, None, None))
            return Rebuild.DROP
        bare = self.demand.bare(var)
        weight, groups = self._weight(layer, rows, bare)
        residual, index = self._residual(layer, rows)
        out_shape = list(layer.attrs.out_shape)
        out_shape[self.channels.axis[var]] = len(rows)
        bias = layer.bias[rows]
        has_bias = bool(value.args[2].fields) or bool(bias.any())
        workload = replace(
            layer.workload,
            channels=weight.shape[1] * groups,
            filters=len(rows),
            groups=groups,
            bias=has_bias,
            residual=residual is not None,
            passed=self.demand.passed[var],
            residual_channels=0 if index is None else len(self._kept(layer, layer.residual)),
        )
        workload = (_pointwise(workload) if bare else workload).with_zeros_of(weight)
        if self._unchanged(layer, value, workload, weight, rows):
            return None
        self.cuts.append(_record(layer, value, workload, rows))
        name = layer.attrs.name
        attrs = layer.attrs.with_(workload=workload, out_shape=tuple(out_shape))
        return layer_call(
            attrs,
            rebuild.old(layer.residual if bare else layer.x),
            relax.Tuple([constant(weight, name)]),
            relax.Tuple([constant(bias, f"{name}.bias")] if has_bias else []),
            relax.Tuple(
                []
                if residual is None
                else [
                    rebuild.old(residual),
                    *([] if index is None else [constant(index, f"{name}.residual_index")]),
                ]
            ),
        )

    def _kept(self, layer: Layer, x: Expr) -> Array:
        """The channels that an operand of ``layer`` holds, in its order."""
        if self.channels.tracked(x, layer):
            return self.demand.keep[x]
        return np.arange(shape_of(x)[1 if layer.workload.op == "conv2d" else -1])

    def _weight(self, layer: Layer, rows: Array, bare: bool) -> tuple[Array, int]:
        """The weight on kept filters and channels, and the groups left."""
        groups = layer.workload.groups
        if bare:
            channels = len(self._kept(layer, layer.residual))
            return np.zeros((len(rows), channels, 1, 1), np.float32), 1
        columns = self._kept(layer, layer.x)
        if groups == 1:
            return np.ascontiguousarray(layer.weight[rows][:, columns]), 1
        filters, per_group = layer.weight.shape[:2]
        left = np.unique(columns // per_group)
        members = (columns % per_group).reshape(len(left), -1)
        mine = members[np.searchsorted(left, rows // (filters // groups))]
        return np.ascontiguousarray(layer.weight[rows[:, None], mine]), len(left)

    def _residual(self, layer: Layer, rows: Array) -> tuple[Expr | None, Array | None]:
        """What is still added, and which of its channels meets each filter; no index if all do in order."""
        if layer.residual is None or not layer.open[rows].any():
            return None, None
        have = self._kept(layer, layer.residual)
        if not layer.free:
            return layer.residual, None
        place = np.full(layer.workload.filters, -1, np.int32)
        place[have] = np.arange(len(have))
        index = np.where(layer.open[rows], place[rows], -1).astype(np.int32)
        in_order = len(have) == len(rows) and bool((index == np.arange(len(rows))).all())
        return layer.residual, None if in_order else index

    def _unchanged(self, layer: Layer, call: Expr, workload: Workload, weight: Array, rows: Array) -> bool:
        in_order = bool((rows == np.arange(len(rows))).all())
        same = workload.without_densities() == layer.workload.without_densities()
        return same and in_order and bool((weight == weight_of(call)).all())


def _sliced(operand: Expr, keep: Array, axis: int, count: int) -> Expr:
    """A constant operand on the kept channels; as it is where it has one value for all."""
    array = operand.value.numpy()
    if array.ndim < -axis or array.shape[axis] != count or count == 1:
        return operand
    return constant(np.ascontiguousarray(np.take(array, keep, axis)))


def _pointwise(workload: Workload) -> Workload:
    """A layer of which only the residual is left, as a 1x1 convolution without weights over the residual itself."""
    return replace(
        workload,
        height=workload.out_height,
        width=workload.out_width,
        kernel_size=(1, 1),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
    )


def _record(layer: Layer, call: Expr, after: Workload | None, rows: Array | None) -> Cut:
    before = layer.workload
    lost = int(np.count_nonzero(weight_of(call)) - np.count_nonzero(layer.weight))
    if after is None or rows is None:
        return Cut(
            layer.attrs.name,
            (before.filters, 0),
            (before.channels, 0),
            (before.macs, 0),
            (_nbytes(before), 0),
            lost,
            0,
            0,
        )
    return Cut(
        name=layer.attrs.name,
        filters=(before.filters, after.live),
        channels=(before.channels, after.channels if after.live else 0),
        macs=(before.macs, after.macs * after.live // after.filters),
        weight_bytes=(_nbytes(before), _nbytes(after)),
        dropped=lost,
        held=after.filters,
        added=int(np.count_nonzero(layer.open[rows])),
    )


def _nbytes(w: Workload) -> int:
    """Bytes of the dense weight of the filters that have weights."""
    return w.weights.nbytes * w.live * math.prod(w.weight_shape[1:])
