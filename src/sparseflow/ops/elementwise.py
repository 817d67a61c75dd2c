"""Functions of single elements of one map or two that leave zeros zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.arrays import Array
from sparseflow.core.element_type import ElementType
from sparseflow.kernels.incremental import operators as on_kept
from sparseflow.kernels.incremental.operators import KeptLayout
from sparseflow.kernels.indexed import operators as on_pixels
from sparseflow.kernels.lane import operators as on_lanes
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.activations import lane_function, single_activation
from sparseflow.ops.binary import BINARY, binary
from sparseflow.ops.expressions import is_constant, op_name, shape_of
from sparseflow.ops.operator import MAPS, ROWS, Make, Operator, Setting, register

Call = Any
Expr = Any


@register
@dataclass(frozen=True)
class Elementwise(Operator):
    """An activation of one map, or a function of `BINARY` of two of one shape.

    Attributes
    ----------
    function : str
    """

    function: str

    kind = "elementwise"
    views = MAPS + ROWS

    @classmethod
    def of(cls, call: Call) -> Elementwise | None:
        function, two = lane_function(call), binary(op_name(call))
        if function is not None:
            return cls(function)
        same = two is not None and shape_of(call.args[0]) == shape_of(call.args[1])
        return cls(two.name) if two is not None and same else None

    @property
    def name(self) -> str:
        return self.function

    def operands(self, call: Call) -> list[Expr]:
        return list(call.args[: 2 if self.function in BINARY else 1])

    def numpy(self, *operands: Array) -> Array:
        if self.function in BINARY:
            return BINARY[self.function].numpy(*operands)
        return ACTIVATIONS[self.function].numpy(operands[0], 0.0)

    def non_negative(self, operands: Sequence[bool]) -> bool:
        if self.function in BINARY:
            return BINARY[self.function].non_negative and all(operands)
        return ACTIVATIONS[self.function].non_negative

    def range(self, operands: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        """Of a function of two: at the corners, as all of `BINARY` are monotone in each operand."""
        if self.function in BINARY:
            values = BINARY[self.function].numpy(*map(np.asarray, zip(*product(*operands), strict=True)))
        else:
            values = ACTIVATIONS[self.function].numpy(np.linspace(*operands[0], 256), 0.0)
        return float(np.min(values)), float(np.max(values))

    @classmethod
    def by_channel(cls, call: Call, axis: int) -> bool:
        """Clamping to any numbers included."""
        if op_name(call) == "relax.clip" or single_activation(call) is not None:
            return True
        whole = binary(op_name(call)) is not None and shape_of(call)
        return bool(whole) and all(is_constant(a) or shape_of(a) == whole for a in call.args)

    @classmethod
    def constant(cls, call: Call, known: Sequence[Array]) -> Array:
        found, two = single_activation(call), binary(op_name(call))
        if found is not None:
            return found[0].numpy(known[0], found[1])
        if two is not None:
            return np.asarray(two.numpy(*known))
        low, high = (float(bound.value) for bound in call.args[1:3])
        return np.asarray(np.clip(known[0], low, high))

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        return True

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        return partial(on_lanes.elementwise, self.function, where.batch, sources, out, where.threads)

    def on_pixels(self, sources: Sequence[PixelLayout], out: PixelLayout, where: Setting) -> Make | None:
        return partial(on_pixels.elementwise, self.function, where.batch, sources, out, where.threads)

    def on_kept(self, sources: Sequence[KeptLayout], target: KeptLayout) -> Make:
        return partial(on_kept.elementwise, self.function, sources, target)
