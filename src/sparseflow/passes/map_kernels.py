"""Kernels of the operators without weights, on lane layouts and on indexed maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparseflow.core.element_type import ELEMENT_TYPES
from sparseflow.kernels.indexed import operators as pixel_maps
from sparseflow.kernels.lane import operators as maps
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.passes.graph import shape_of
from sparseflow.passes.layout import Node

Expr = Any
Make = Callable[[str], Any]


def map_of(var: Expr) -> PixelLayout:
    """The layout of an NCHW tensor as an indexed map without halo."""
    _, channels, height, width = shape_of(var)
    return PixelLayout(channels, height, width, element=ELEMENT_TYPES[str(var.ty.dtype)])


def lane_operator(node: Node, layouts: Sequence[LaneLayout], batch: int, threads: int) -> Make:
    """Makes the kernel of a pool, mean, concatenation or element-wise operator on lanes."""
    out = node.layout
    if node.kind == "mean":
        return lambda n: maps.global_mean(batch, layouts[0], threads, n)
    if out is None:
        raise ValueError(f"{node.kind} has no layout")
    if node.kind == "pool":
        return lambda n: maps.pool(node.detail, batch, layouts[0], out, threads, n)
    if node.kind == "concat":
        return lambda n: maps.concatenate(batch, layouts, out, threads, n)
    return lambda n: maps.elementwise(node.detail, batch, layouts, out, threads, n)


def pixel_operator(
    node: Node, layouts: Sequence[PixelLayout], out: PixelLayout | None, batch: int, threads: int
) -> Make | None:
    """Makes the kernel of the same operators on indexed maps; None for others."""
    if node.view != "nchw":
        return None
    if node.kind == "mean":
        return lambda n: pixel_maps.global_mean(batch, layouts[0], threads, n)
    if out is None:
        return None
    if node.kind == "pool" and node.detail.kind == "max":
        return lambda n: pixel_maps.pool(node.detail, batch, layouts[0], out, threads, n)
    if node.kind == "concat":
        return lambda n: pixel_maps.concatenate(batch, layouts, out, threads, n)
    if node.kind in ("unary", "binary"):
        return lambda n: pixel_maps.elementwise(node.detail, batch, layouts, out, threads, n)
    return None
