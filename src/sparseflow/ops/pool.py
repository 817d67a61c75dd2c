"""Max and average pools, the whole map's mean included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.element_type import ElementType
from sparseflow.kernels.incremental import operators as on_kept
from sparseflow.kernels.incremental.operators import KeptLayout, Window
from sparseflow.kernels.indexed import operators as on_pixels
from sparseflow.kernels.lane import operators as on_lanes
from sparseflow.kernels.lane.operators import Pool
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.expressions import op_name, shape_of
from sparseflow.ops.operator import Make, Operator, Setting, register

Call = Any
KINDS = {"relax.nn.max_pool2d": "max", "relax.nn.avg_pool2d": "avg"}


@register
@dataclass(frozen=True)
class Pooling(Operator):
    """The largest or the mean of each window.

    Attributes
    ----------
    pool : Pool
        The window.
    """

    pool: Pool

    kind = "pool"

    @classmethod
    def of(cls, call: Call) -> Pooling | None:
        kind = KINDS.get(op_name(call))
        if kind is None or not cls.by_channel(call, 1):
            return None
        a = call.attrs
        if any(int(d) != 1 for d in a.dilation) or (kind == "avg" and bool(a.ceil_mode)):
            return None
        size, strides = ((int(v[0]), int(v[1])) for v in (a.pool_size, a.strides))
        top, left, bottom, right = (int(p) for p in a.padding)
        return cls(Pool(kind, size, strides, (top, left, bottom, right), bool(a.count_include_pad)))

    @property
    def name(self) -> str:
        return f"{self.pool.kind}_pool"

    @property
    def selects(self) -> bool:
        return not self._mean

    @property
    def _mean(self) -> bool:
        return self.pool.kind == "avg"

    def numpy(self, *operands: Array) -> Array:
        """Without positions beyond the padding, as which PyTorch's ``ceil_mode`` may ask for."""
        (x,), p = operands, self.pool
        top, left, bottom, right = p.padding
        around = ((0, 0), (0, 0), (top, bottom), (left, right))

        def windows(values: Array, fill: float) -> Array:
            padded = np.pad(values, around, constant_values=fill)
            found = np.lib.stride_tricks.sliding_window_view(padded, p.kernel_size, (2, 3))
            return np.asarray(found[:, :, :: p.stride[0], :: p.stride[1]])

        if not self._mean:
            return np.asarray(windows(x, -np.inf).max(axis=(4, 5)))
        inside = windows(np.ones_like(x), 1.0 if p.count_include_pad else 0.0)
        return np.asarray(windows(x, 0.0).sum(axis=(4, 5)) / inside.sum(axis=(4, 5)))

    def non_negative(self, operands: Sequence[bool]) -> bool:
        return operands[0]

    def range(self, operands: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        return operands[0]

    @classmethod
    def by_channel(cls, call: Call, axis: int) -> bool:
        return op_name(call) in KINDS and axis == 1 and str(call.attrs.layout) == "NCHW"

    @classmethod
    def constant(cls, call: Call, known: Sequence[Array]) -> Array:
        """With zeros around the map an average keeps zeros only."""
        padded = any(int(p) for p in call.attrs.padding) or bool(call.attrs.ceil_mode)
        if KINDS[op_name(call)] == "max" or not padded:
            return known[0]
        return np.where(known[0] == 0.0, 0.0, np.nan)

    def needs(
        self, out: LaneLayout, shapes: Sequence[tuple[int, int, int]], lanes: int, positive: bool
    ) -> list[LaneLayout]:
        p = self.pool
        need = out.read_by(shapes[0], p.kernel_size, p.stride, p.padding)
        return [need if self._mean or positive else replace(need, fill=float("-inf"))]

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        return True

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        source, result = (replace(layout, element=layout.element.unit) for layout in (sources[0], out))
        return partial(on_lanes.pool, self.pool, where.batch, source, result, where.threads)

    def lane_constants(self, sources: Sequence[LaneLayout], out: LaneLayout) -> list[Array]:
        """What an average multiplies each window's sum by."""
        return [on_lanes.pool_scale(self.pool, sources[0], out)] if self._mean else []

    def on_pixels(self, sources: Sequence[PixelLayout], out: PixelLayout, where: Setting) -> Make | None:
        if self._mean:
            return None
        return partial(on_pixels.pool, self.pool, where.batch, sources[0], out, where.threads)

    def on_kept(self, sources: Sequence[KeptLayout], target: KeptLayout) -> Make:
        return partial(on_kept.pool, self.pool, sources[0], target)

    def window(self) -> Window:
        (top, left), p = self.pool.padding[:2], self.pool
        return Window(p.kernel_size, p.stride, (-top, -left))


@register
@dataclass(frozen=True)
class Mean(Operator):
    """The mean over rows and columns of each channel."""

    kind = "mean"
    reduces = True

    @classmethod
    def of(cls, call: Call) -> Mean | None:
        if not cls.by_channel(call, 1):
            return None
        if op_name(call) == "relax.nn.adaptive_avg_pool2d":
            size = call.attrs.output_size
            if size is None or any(int(n) != 1 for n in size):
                return None
        return cls()

    @property
    def name(self) -> str:
        return "global_mean"

    def numpy(self, *operands: Array) -> Array:
        return np.asarray(operands[0].mean(axis=(2, 3), keepdims=True))

    def range(self, operands: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        return operands[0]

    @classmethod
    def by_channel(cls, call: Call, axis: int) -> bool:
        """Adaptive average pools to more than one position included."""
        name = op_name(call)
        if name == "relax.nn.adaptive_avg_pool2d":
            return axis == 1 and str(call.attrs.layout) == "NCHW"
        if name != "relax.mean" or axis != 1 or len(shape_of(call.args[0])) != 4:
            return False
        return sorted(int(a) % 4 for a in call.attrs.axis or []) == [2, 3]

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        return True

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        return partial(on_lanes.global_mean, where.batch, sources[0], where.threads)

    def on_pixels(self, sources: Sequence[PixelLayout], out: PixelLayout, where: Setting) -> Make | None:
        return partial(on_pixels.global_mean, where.batch, sources[0], where.threads)
