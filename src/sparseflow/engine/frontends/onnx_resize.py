"""ONNX's ``Resize`` and ``Upsample``: which input elements an output element is made of, as the specification says.

References
----------
ONNX operators, Resize-19: coordinate transformation modes, nearest modes, cubic and antialiasing filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparseflow.engine.frontends.resample import Floats, Taps

_NEAREST: dict[str, Callable[[Floats], Any]] = {
    "round_prefer_floor": lambda ratio: ratio > 0.5,
    "round_prefer_ceil": lambda ratio: ratio >= 0.5,
    "floor": lambda ratio: ratio == 1.0,
    "ceil": lambda ratio: ratio > 0.0,
}
"""Whether the right one of a coordinate's two neighbours is taken; its distance from the left one is in (0, 1]."""
_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Resize:
    """How one axis is resized; the attributes are those of the ONNX operator.

    Raises
    ------
    ValueError
        If a mode is unknown.
    """

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    roi: tuple[float | np.float32, float | np.float32] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, ("nearest", "linear", "cubic")),
            ("coordinate_transformation_mode", self.coordinates, _COORDINATES),
            ("nearest_mode", self.nearest, tuple(_NEAREST)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r}; allowed: {', '.join(allowed)}")

    def taps(self, size: int, scale: float, out: int) -> Taps:
        """What ``out`` elements are made of, ``scale`` times the ``size`` input elements."""
        x = self._source(size, scale, out)
        outside = (x < 0) | (x > size - 1) if self.coordinates == "tf_crop_and_resize" else None
        if self.mode == "nearest":
            # Left neighbour and distance are rounded apart, as in the reference implementation: it shows in coordinates
            # that would be whole numbers but for the rounding.
            left = np.ceil(x + 1) - 2
            ratio = x - np.ceil(x) + 1
            index = np.clip(left + _NEAREST[self.nearest](ratio), 0, size - 1)
            return replace(Taps.picks(index), outside=outside)
        reach, weigh = self._filter(scale)
        index = np.ceil(x)[:, None].astype(int) + np.arange(-reach, reach)
        weight = weigh(index - x[:, None])
        if self.antialias:
            weight /= weight.sum(axis=1, keepdims=True)
        if self.exclude_outside:
            weight = np.where((index < 0) | (index >= size), 0.0, weight)
            total = weight.sum(axis=1, keepdims=True)
            weight /= np.where(total == 0, 1.0, total)
        # Positions beyond the border read the border, so several may meet in one: the matrix adds them up.
        found = Taps(np.clip(index, 0, size - 1), weight)
        return replace(Taps.of_matrix(found.matrix(size)), outside=outside)

    def _source(self, size: int, scale: float, out: int) -> Floats:
        """Where each output element lies in the input."""
        at, wide = np.arange(out, dtype="float64"), scale * size
        low, high = self.roi
        if self.coordinates == "align_corners":
            return np.zeros(out) if wide == 1 else at * (size - 1) / (wide - 1)
        if self.coordinates == "asymmetric":
            return at / scale
        if self.coordinates == "tf_crop_and_resize":
            if wide == 1:
                return np.full(out, (low + high) * (size - 1) / 2)
            return low * (size - 1) + at * (high - low) * (size - 1) / (wide - 1)
        if self.coordinates == "pytorch_half_pixel" and wide == 1:
            return np.full(out, -0.5)
        half = (at + 0.5) / scale - 0.5
        shift = size / 2 * (1 - out / wide) if self.coordinates == "half_pixel_symmetric" else 0.0
        return half + shift

    def _filter(self, scale: float) -> tuple[int, Callable[[Floats], Floats]]:
        """Elements on each side, and the weight of an element by its distance."""
        shrunk = min(scale, 1.0) if self.antialias else 1.0
        if self.mode == "linear":
            return math.ceil(1 / shrunk), lambda d: np.clip(1 - np.abs(d) * shrunk, 0, 1)
        a = self.cubic

        def cubic(distance: Floats) -> Floats:
            d = np.abs(distance) * shrunk
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

        return math.ceil(2 / shrunk), cubic


def resize_axes(
    shape: Sequence[int],
    attrs: Mapping[str, Any],
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    roi: Sequence[float] | None,
) -> dict[int, Taps]:
    """Axis → what its output is made of, of a Resize node over an input of ``shape``.

    Raises
    ------
    ValueError
        If the node asks for something that the specification does not know.
    """
    axes = [int(a) % len(shape) for a in attrs.get("axes", range(len(shape)))]
    how = Resize(
        _text(attrs.get("mode", "nearest")),
        _text(attrs.get("coordinate_transformation_mode", "half_pixel")),
        _text(attrs.get("nearest_mode", "round_prefer_floor")),
        float(attrs.get("cubic_coeff_a", -0.75)),
        bool(attrs.get("exclude_outside", 0)),
        bool(attrs.get("antialias", 0)),
    )
    if sizes is not None:
        factors = [size / shape[a] for a, size in zip(axes, sizes, strict=True)]
        out = [int(s) for s in sizes]
        policy = _text(attrs.get("keep_aspect_ratio_policy", "stretch"))
        if policy not in ("stretch", "not_larger", "not_smaller"):
            raise ValueError(
                f"keep_aspect_ratio_policy {policy!r}; allowed: stretch, not_larger, not_smaller"
            )
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(axes)
            out = [int(f * shape[a] + 0.5) for a, f in zip(axes, factors, strict=True)]
    elif scales is not None:
        factors = [float(s) for s in scales]
        out = [math.floor(f * shape[a]) for a, f in zip(axes, factors, strict=True)]
    else:
        raise ValueError("neither scales nor sizes are constant")
    found: dict[int, Taps] = {}
    for i, (axis, factor, size) in enumerate(zip(axes, factors, out, strict=True)):
        cut = (0.0, 1.0) if roi is None else (np.float32(roi[i]), np.float32(roi[i + len(axes)]))
        if math.isclose(factor, 1.0) and size == shape[axis] and cut == (0.0, 1.0):
            continue
        found[axis] = replace(how, roi=cut).taps(shape[axis], factor, size)
    return found
