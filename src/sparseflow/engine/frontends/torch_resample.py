"""torch's interpolation, padding and adaptive pooling → gathers along each axis, in all modes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tvm import relax

from sparseflow.engine.frontends.resample import PAD_MODES, Taps, pad, picked, resample
from sparseflow.errors import ImportModelError

_INDEXED = [f"{name}{n}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)]
_WEIGHTED = {
    "upsample_linear1d": "upsample_linear1d",
    "upsample_bilinear2d": "upsample_linear1d",
    "upsample_trilinear3d": "upsample_linear1d",
    "upsample_bicubic2d": "upsample_bicubic2d",
    "_upsample_bilinear2d_aa": "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa": "_upsample_bicubic2d_aa",
}
"""Interpolation of a map → the operator that does the same along one axis."""
_ONE_AXIS = {**{name: name for name in _INDEXED}, **_WEIGHTED}
_INTERPOLATIONS = [f"{name}.{overload}" for name in _ONE_AXIS for overload in ("vec", "default")]
_POOLS = [f"adaptive_max_pool{n}d.default" for n in (1, 2, 3)]

_MEANS = [f"adaptive_avg_pool{n}d.default" for n in (1, 2, 3)]

KEPT_WHOLE = (*_INTERPOLATIONS, *_POOLS, *_MEANS, "pad.default")
"""What is taken out of torch's decomposition table: operator and overload."""


def converters(importer: Any) -> dict[str, Callable[[Any], Any]]:
    """Operator and overload → torch.fx node → Relax expression."""
    return {
        **{name: lambda node: _interpolate(importer, node) for name in _INTERPOLATIONS},
        **{name: lambda node: _adaptive_max_pool(importer, node) for name in _POOLS},
        **{name: lambda node: _adaptive_avg_pool(importer, node) for name in _MEANS},
        "pad.default": lambda node: _pad(importer, node),
    }


def arguments(node: Any) -> dict[str, Any]:
    """The arguments of a node by their names in the operator's schema, defaults and None left out."""
    names = [a.name for a in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {name: value for name, value in given.items() if value is not None}


def _interpolate(importer: Any, node: Any) -> Any:
    args = arguments(node)
    x = importer.env[node.args[0]]
    sizes = [int(n) for n in x.ty.shape]
    spatial = range(2, len(sizes))
    scales = args.get("scale_factors")
    if scales is None:
        named = ["scales"] if len(sizes) == 3 else [f"scales_{a}" for a in "dhw"[-len(spatial) :]]
        scales = [args.get(name) for name in named]
    name = node.target.__name__.split(".")[0]
    out = [int(n) for n in node.meta["val"].shape]
    if sizes == out and _copies(node, sizes):
        return x
    align = bool(args.get("align_corners", False))
    axes = {a: axis_taps(_ONE_AXIS[name], sizes[a], out[a], scales[a - 2], align) for a in spatial}
    return resample(importer.block_builder.emit, x, axes)


def _copies(node: Any, sizes: list[int]) -> bool:
    """Whether torch copies a map whose size stays, whatever the scales say; it does so for some ranks and modes."""
    probe = torch.rand(1, 1, *sizes[2:])
    return bool(torch.equal(node.target(probe, *node.args[1:], **node.kwargs), probe))


def axis_taps(operator: str, size: int, out: int, scale: float | None, align_corners: bool) -> Taps:
    """What ``out`` elements are made of, read off torch's own result for ``size`` unit vectors.

    So the positions and weights are torch's to the last bit, its rounding of scales included. (Antialiased, torch 2.13
    itself computes maps one element wide wrongly, whence the unit vectors lie along the last axis.)
    """
    function = getattr(torch.ops.aten, operator).default
    if operator in _INDEXED:  # with the rank kept: maps of two axes are rounded in another way
        ones = [1] * (int(operator[-2]) - 1)
        numbers = torch.arange(size, dtype=torch.float64).reshape(1, 1, *ones, size)
        return Taps.picks(function(numbers, [*ones, out], *[None for _ in ones], scale).flatten())
    unit = torch.eye(size)[None]
    if operator == "upsample_linear1d":
        made = function(unit, [out], align_corners, scale)[0]
    else:
        made = function(unit[:, :, None], [1, out], align_corners, None, scale)[0, :, 0]
    return Taps.of_matrix(made.T.numpy())


def _pad(importer: Any, node: Any) -> Any:
    args = arguments(node)
    x = importer.env[node.args[0]]
    mode, rank, widths = args.get("mode", "constant"), len(x.ty.shape), args["pad"]
    if mode != "constant" and mode not in PAD_MODES:
        raise ImportModelError(f"padding mode {mode!r}; allowed: constant, {', '.join(PAD_MODES)}")
    pads = {rank - 1 - i // 2: (int(widths[i]), int(widths[i + 1])) for i in range(0, len(widths), 2)}
    return pad(importer.block_builder.emit, x, pads, mode, float(args.get("value") or 0.0))


def _adaptive_max_pool(importer: Any, node: Any) -> Any:
    """The maximum of each window ``[floor(i n / out), ceil((i + 1) n / out))``, one axis after the other."""
    for user in node.users:
        if user.args[1:] == (1,) and user.users:
            raise ImportModelError(
                f"{node.target}: the positions of the maxima are used; only the values compile"
            )
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    for axis, count in _pooled_axes(node):
        size = int(x.ty.shape[axis])
        if count in (1, size):
            x = x if count == size else emit(relax.op.max(x, axis=axis, keepdims=True))
            continue
        first, last = _windows(size, count)
        best = picked(emit, x, axis, first)
        for k in range(
            1, int((last - first).max()) + 1
        ):  # past its end a window's last element is read again
            best = emit(relax.op.maximum(best, picked(emit, x, axis, np.minimum(first + k, last))))
        x = best
    return relax.Tuple([x, x])


def _adaptive_avg_pool(importer: Any, node: Any) -> Any:
    """The mean of each window: of windows of one size a pool, of others a sum along each axis."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    axes = _pooled_axes(node)
    sizes = [int(x.ty.shape[axis]) for axis, _ in axes]
    counts = [count for _, count in axes]
    if len(x.ty.shape) == 4 and len(axes) == 2:
        if counts == [1, 1]:
            return emit(relax.op.nn.adaptive_avg_pool2d(x, (1, 1)))
        if all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):
            window = tuple(size // count for size, count in zip(sizes, counts, strict=True))
            return x if window == (1, 1) else emit(relax.op.nn.avg_pool2d(x, window, window))
    taps = {}
    for (axis, count), size in zip(axes, sizes, strict=True):
        first, last = _windows(size, count)
        at = np.arange(size)
        inside = (at >= first[:, None]) & (at <= last[:, None])
        taps[axis] = Taps.of_matrix(inside / inside.sum(axis=1, keepdims=True))
    return resample(emit, x, taps)


def _pooled_axes(node: Any) -> list[tuple[int, int]]:
    """The axes that an adaptive pool takes together, and how many elements each keeps."""
    out = arguments(node)["output_size"]
    made = node.meta["val"]
    rank = len(made[0].shape if isinstance(made, tuple) else made.shape)
    return [(rank - len(out) + i, int(count)) for i, count in enumerate(out)]


def _windows(size: int, count: int) -> tuple[Any, Any]:
    """First and last element of each of ``count`` windows."""
    numbers = np.arange(count)
    return numbers * size // count, -(-(numbers + 1) * size // count) - 1


def named(table: Mapping[Any, Any]) -> list[Any]:
    """The keys of a decomposition table that name an operator of `KEPT_WHOLE`."""
    return [key for key in table if getattr(key, "__name__", "") in KEPT_WHOLE]
