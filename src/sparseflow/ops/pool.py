"""Pooling, the whole map's mean included: recognition, and what it does to constant channels."""

from __future__ import annotations

from typing import Any

from sparseflow.kernels.lane.operators import Pool

Call = Any
KINDS = {"relax.nn.max_pool2d": "max", "relax.nn.avg_pool2d": "avg"}


def window_of(operator: str, call: Call) -> Pool | None:
    """The window of a max or average pool for which there are kernels; None for every other operator."""
    kind = KINDS.get(operator)
    if kind is None:
        return None
    a = call.attrs
    if str(a.layout) != "NCHW" or any(int(d) != 1 for d in a.dilation):
        return None
    if kind == "avg" and bool(a.ceil_mode):
        return None
    size, strides = ((int(v[0]), int(v[1])) for v in (a.pool_size, a.strides))
    top, left, bottom, right = (int(p) for p in a.padding)
    return Pool(kind, size, strides, (top, left, bottom, right), bool(a.count_include_pad))


def per_channel(operator: str, call: Call, rank: int) -> bool:
    """Whether an operator pools the rows and columns of each channel by itself, all of them or windows."""
    if operator in KINDS or operator == "relax.nn.adaptive_avg_pool2d":
        return str(call.attrs.layout) == "NCHW"
    return operator == "relax.mean" and rank == 4 and over_map(call)


def over_map(call: Call) -> bool:
    """Whether a mean of an NCHW tensor goes over rows and columns."""
    return sorted(int(a) % 4 for a in call.attrs.axis or []) == [2, 3]


def keeps_constants(operator: str, call: Call) -> bool:
    """Whether a channel that is the same everywhere keeps its value; with padding an average keeps zeros only."""
    averaged = operator == "relax.nn.avg_pool2d"
    return not averaged or not (any(int(p) for p in call.attrs.padding) or bool(call.attrs.ceil_mode))
