"""Resizing and padding of known sizes: along each axis, an output element is a weighted sum of few input elements.

The positions and weights are computed once, here, by the rules of the format that the model came in; the network holds
gathers with constant positions. So an element is the one that torch or ONNX names, whatever the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

Emit = Callable[[Any], Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GATHERS = 4
"""Most elements of a sum that are gathered one by one; longer sums (antialiasing) are a product with a small matrix."""


@dataclass(frozen=True)
class Taps:
    """What each output element along an axis is made of: ``sum(weight[o, k] * x[index[o, k]] for k)``.

    Attributes
    ----------
    index : int array (out, k)
        Positions in the input.
    weight : float array (out, k)
    outside : bool array (out,), optional
        Output elements that lie outside of the input and get a fill value.
    """

    index: Ints
    weight: Floats
    outside: npt.NDArray[np.bool_] | None = None

    @classmethod
    def picks(cls, index: npt.ArrayLike) -> Taps:
        """One input element for each output element."""
        column = np.asarray(index, "int64").reshape(-1, 1)
        return cls(column, np.ones(column.shape))

    @classmethod
    def of_matrix(cls, matrix: npt.ArrayLike) -> Taps:
        """The non-zeros of a matrix (out, in), which is what resampling makes of the unit vectors."""
        dense = np.asarray(matrix, "float64")
        count = max(1, int((dense != 0).sum(axis=1).max()))
        index = np.sort(np.argsort(dense == 0, axis=1, kind="stable")[:, :count], axis=1)
        return cls(index, np.take_along_axis(dense, index, axis=1))

    def matrix(self, size: int) -> Floats:
        """The dense (out, ``size``) matrix."""
        out = np.zeros((len(self.index), size))
        np.add.at(out, (np.arange(len(self.index))[:, None], self.index), self.weight)
        return out

    def changes_nothing(self, size: int) -> bool:
        """Whether the output is the input of ``size`` elements."""
        return (
            self.outside is None
            and self.index.shape == (size, 1)
            and bool((self.weight == 1).all() and (self.index[:, 0] == np.arange(size)).all())
        )


def resample(emit: Emit, x: Any, axes: Mapping[int, Taps], fill: float = 0.0) -> Any:
    """``x`` resampled along each of ``axes``; elements outside of the input along any axis are ``fill``.

    Parameters
    ----------
    emit : callable
        Binds a Relax expression to a variable.
    x : Relax tensor
    axes : mapping of axis to Taps
    fill : float
    """
    outside: dict[int, Any] = {}
    for axis, taps in axes.items():
        if not taps.changes_nothing(int(x.ty.shape[axis])):
            x = _along(emit, x, axis, taps)
        if taps.outside is not None and taps.outside.any():
            outside[axis] = taps.outside
    dtype = str(x.ty.dtype.dtype)
    for axis, mask in outside.items():
        flags = relax.const(_shaped(mask, axis, len(x.ty.shape)))
        x = emit(relax.op.where(flags, relax.const(fill, dtype), x))
    return x


def picked(emit: Emit, x: Any, axis: int, index: npt.ArrayLike) -> Any:
    """The elements at ``index`` along an axis."""
    return emit(relax.op.take(x, relax.const(np.asarray(index, "int32")), axis=axis, mode="clip"))


def _along(emit: Emit, x: Any, axis: int, taps: Taps) -> Any:
    rank, dtype = len(x.ty.shape), str(x.ty.dtype.dtype)
    count = taps.index.shape[1]
    if count == 1 and bool((taps.weight == 1).all()):
        return picked(emit, x, axis, taps.index[:, 0])
    if count > GATHERS:
        return _product(emit, x, axis, taps)
    total = None
    for k in range(count):
        weight = relax.const(_shaped(taps.weight[:, k].astype(dtype), axis, rank))
        term = emit(relax.op.multiply(picked(emit, x, axis, taps.index[:, k]), weight))
        total = term if total is None else emit(relax.op.add(total, term))
    return total


def _product(emit: Emit, x: Any, axis: int, taps: Taps) -> Any:
    rank, dtype = len(x.ty.shape), str(x.ty.dtype.dtype)
    order = list(range(rank))
    order[axis], order[rank - 2] = order[rank - 2], order[axis]
    matrix = relax.const(taps.matrix(int(x.ty.shape[axis])).astype(dtype))
    moved = x if axis == rank - 2 else emit(relax.op.permute_dims(x, order))
    made = emit(relax.op.matmul(matrix, moved))
    return made if axis == rank - 2 else emit(relax.op.permute_dims(made, order))


def _shaped(vector: npt.NDArray[Any], axis: int, rank: int) -> npt.NDArray[Any]:
    return vector.reshape([-1 if a == axis else 1 for a in range(rank)])


PAD_MODES = {"reflect": "reflect", "edge": "edge", "replicate": "edge", "wrap": "wrap", "circular": "wrap"}
"""The modes besides ``constant``, as torch and ONNX name them → as NumPy does."""


def pad(emit: Emit, x: Any, pads: Mapping[int, tuple[int, int]], mode: str, value: float = 0.0) -> Any:
    """``x`` padded (or cropped, where a number is negative) before and after along each of ``pads``' axes.

    Parameters
    ----------
    emit : callable
    x : Relax tensor
    pads : mapping of axis to (before, after)
    mode : str
        ``constant`` or a key of `PAD_MODES`.
    value : float
        Of the padding in mode ``constant``.
    """
    sizes = [int(n) for n in x.ty.shape]
    crops = {a: (max(0, -low), sizes[a] - max(0, -high)) for a, (low, high) in pads.items()}
    for axis, (begin, end) in crops.items():
        if (begin, end) != (0, sizes[axis]):
            x = emit(relax.op.strided_slice(x, axes=[axis], begin=[begin], end=[end]))
    grown = {a: (max(0, low), max(0, high)) for a, (low, high) in pads.items()}
    if mode == "constant":
        widths = [n for a in range(len(sizes)) for n in grown.get(a, (0, 0))]
        return emit(relax.op.nn.pad(x, widths, pad_mode="constant", pad_value=value)) if any(widths) else x
    for axis, both in grown.items():
        if any(both):
            count = int(x.ty.shape[axis])
            x = picked(emit, x, axis, np.pad(np.arange(count), both, mode=PAD_MODES[mode]))  # type: ignore[call-overload]
    return x
