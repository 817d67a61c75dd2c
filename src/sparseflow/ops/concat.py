"""Concatenation of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from tvm import relax

from sparseflow.core.arrays import Array
from sparseflow.core.element_type import ElementType
from sparseflow.kernels.incremental import operators as on_kept
from sparseflow.kernels.incremental.operators import KeptLayout
from sparseflow.kernels.indexed import operators as on_pixels
from sparseflow.kernels.lane import operators as on_lanes
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.expressions import is_constant, op_name, shape_of
from sparseflow.ops.operator import Make, Operator, Setting, register

Call = Any
Expr = Any


@register
@dataclass(frozen=True)
class Concat(Operator):
    """The channels of all operands in turn."""

    kind = "concat"
    joins = True

    @classmethod
    def of(cls, call: Call) -> Concat | None:
        return cls() if cls.by_channel(call, 1) and len(shape_of(call.args[0].fields[0])) == 4 else None

    def operands(self, call: Call) -> list[Expr]:
        return list(call.args[0].fields)

    def numpy(self, *operands: Array) -> Array:
        return np.concatenate(operands, axis=1)

    def non_negative(self, operands: Sequence[bool]) -> bool:
        return all(operands)

    def range(self, operands: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        return min(low for low, _ in operands), max(high for _, high in operands)

    @classmethod
    def by_channel(cls, call: Call, axis: int) -> bool:
        if op_name(call) != "relax.concat" or not isinstance(call.args[0], relax.Tuple):
            return False
        parts = call.args[0].fields
        along = int(call.attrs.axis) % len(shape_of(parts[0]))
        return along == axis and not any(is_constant(part) for part in parts)

    @classmethod
    def constant(cls, call: Call, known: Sequence[Array]) -> Array:
        return reduce(lambda a, b: np.where(np.isnan(a), b, a), known)

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        return not any(count % element.per_slot for count in channels[:-1])

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        return partial(on_lanes.concatenate, where.batch, sources, out, where.threads)

    def on_pixels(self, sources: Sequence[PixelLayout], out: PixelLayout, where: Setting) -> Make | None:
        return partial(on_pixels.concatenate, where.batch, sources, out, where.threads)

    def on_kept(self, sources: Sequence[KeptLayout], target: KeptLayout) -> Make:
        return partial(on_kept.concatenate, sources, target)
