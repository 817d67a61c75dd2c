"""Quantise and dequantise operators on maps → markers of levels, the same whichever format they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from sparseflow.core.element_type import QUANTISED
from sparseflow.errors import ImportModelError
from sparseflow.ops.expressions import op_name, scalar
from sparseflow.passes.levels import levels

Expr = Any
TYPES = ("int8", "uint8")
"""The types whose levels maps may lie on."""


def quantise(place: str, x: Expr, scale: Any, zero: Any, dtype: str) -> Expr:
    """The levels of ``x``; `dequantise` makes a marker of both. ``place`` names the operator in errors.

    Raises
    ------
    ImportModelError
        If the levels have other than 8 bits, or not one scale for the whole map.
    """
    operands = _operands(place, scale, zero, dtype)
    return relax.op.quantize(x, *operands, axis=0, out_dtype=dtype)


def dequantise(place: str, builder: Any, x: Expr, scale: Any, zero: Any) -> Expr:
    """The numbers that levels stand for, marked: the map itself where `quantise` made the levels of it.

    Raises
    ------
    ImportModelError
        As `quantise`.
    """
    dtype = str(x.ty.dtype.dtype)
    operands = _operands(place, scale, zero, dtype)
    numbers = [scalar(o) for o in operands]
    made = builder.lookup_binding(x) if isinstance(x, relax.Var) else x
    if op_name(made) == "relax.quantize" and [scalar(o) for o in made.args[1:]] == numbers:
        x = made.args[0]
    else:
        x = builder.emit(relax.op.dequantize(x, *operands, axis=0, out_dtype="float32"))
    return levels(x, *QUANTISED[dtype].at(float(numbers[0] or 0.0), int(numbers[1] or 0)).range)


def _operands(place: str, scale: Any, zero: Any, dtype: str) -> tuple[Expr, Expr]:
    """Scale and zero point, each one number."""
    if dtype not in TYPES:
        raise ImportModelError(f"{place}: quantised map of type {dtype}; allowed: {', '.join(TYPES)}")
    if scale is None or zero is None:
        raise ImportModelError(
            f"{place}: quantised map whose scale or zero point is computed; allowed: constants"
        )
    scale, zero = np.asarray(scale), np.asarray(zero)
    if scale.size != 1 or zero.size != 1:
        count = max(scale.size, zero.size)
        raise ImportModelError(
            f"{place}: quantised map with {count} scales; allowed: one for it all (per tensor)"
        )
    if not float(scale.reshape(())) > 0.0:
        raise ImportModelError(
            f"{place}: quantised map of scale {float(scale.reshape(())):g}; allowed: above 0"
        )
    return relax.const(scale.reshape(()), "float32"), relax.const(zero.reshape(()), dtype)
