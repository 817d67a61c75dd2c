"""What an operator on maps is, and the registry of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.kernels.incremental.operators import KeptLayout, Window
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.target.base import VectorUnit
from sparseflow.registry import Registry

Call = Any
Expr = Any
Make = Callable[[str], Any]
"""Makes a kernel, a TIR function, of the given name."""

MAPS = ("nchw",)
ROWS = ("matrix", "tokens")


@dataclass(frozen=True)
class Setting:
    """Where kernels run.

    Attributes
    ----------
    batch : int
        Maps in each operand.
    threads : int
    vectors : VectorUnit
    """

    batch: int
    threads: int
    vectors: VectorUnit


class Operator(ABC):
    """An operator on maps, without weights but for small tensors; an instance holds the numbers that decide its code.

    A kernel is declared by implementing `on_lanes`, `on_pixels` or `on_kept`; an operator without one in some layout
    takes the maps in another.

    Attributes
    ----------
    kind : str
        The name in the registry.
    views : tuple of str
        The ways of seeing a tensor as maps in which it has kernels: ``nchw``; ``matrix``, all rows in one map; or
        ``tokens``, (batch, tokens, features) with one 1 x tokens map for each image.
    reads_anything : bool
        Whether it takes operands that do not lie in lanes yet.
    reduces : bool
        Whether its result is no map but one number for each channel.
    joins : bool
        Whether its result has the channels of all operands in turn, and not those of each.
    """

    kind: ClassVar[str]
    views: ClassVar[tuple[str, ...]] = MAPS
    reads_anything: ClassVar[bool] = False
    reduces: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    # ------------------------------------------------------------------------------------------ recognition
    @classmethod
    @abstractmethod
    def of(cls, call: Call) -> Self | None:
        """The operator that ``call`` is; None if it is another, or one for which there are no kernels."""

    @property
    def name(self) -> str:
        """Of its kernels."""
        return self.kind

    @property
    def selects(self) -> bool:
        """Whether each result is the largest of some elements of one operand: bounds may be put before it or behind."""
        return False

    def operands(self, call: Call) -> list[Expr]:
        """The maps that ``call`` reads."""
        return [call.args[0]]

    def tensors(self, call: Call) -> list[Expr]:
        """The small tensors that its kernels on lanes read row-major, behind the maps."""
        return []

    # ---------------------------------------------------------------------------------------------- meaning
    @abstractmethod
    def numpy(self, *operands: Array) -> Array:
        """What it means, for maps (N, C, H, W) or rows (…, features), followed by `tensors`."""

    def non_negative(self, operands: Sequence[bool]) -> bool:
        """Whether no result is negative, of operands of which that is known or not."""
        return False

    def range(self, operands: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
        """Between which numbers its results lie, for operands between these; None if its kernels read no levels."""
        return None

    # --------------------------------------------------------------------------------------------- channels
    @classmethod
    def by_channel(cls, call: Call, axis: int) -> bool:
        """Whether ``call`` works on each channel by itself, channels lying along ``axis``; kernels or not."""
        return False

    @classmethod
    def constant(cls, call: Call, known: Sequence[Array]) -> Array:
        """The value of each channel of the result that is the same everywhere, NaN for others.

        ``known`` is the same of each operand, in the result's channels.
        """
        return np.asarray(known[0])

    # ---------------------------------------------------------------------------------------------- kernels
    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        """Whether its kernels on lanes compute maps of a type, with so many channels in each operand."""
        return element == FLOAT32

    def needs(
        self, out: LaneLayout, shapes: Sequence[tuple[int, int, int]], lanes: int, positive: bool
    ) -> list[LaneLayout]:
        """The layouts in which it reads maps (channels, height, width) to write ``out``.

        One that reduces ignores ``out``, here and below; ``positive`` tells that no operand has a negative value.
        """
        return [canonical(*shape, lanes, out.element) for shape in shapes]

    @abstractmethod
    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        """The kernel ``(map, …, tensor, …, constant, …, result)`` on lanes."""

    def lane_constants(self, sources: Sequence[LaneLayout], out: LaneLayout) -> list[Array]:
        """Arrays that the kernel on lanes reads behind the tensors."""
        return []

    def on_pixels(self, sources: Sequence[PixelLayout], out: PixelLayout, where: Setting) -> Make | None:
        """The kernel ``(values, …, result)`` on indexed maps."""
        return None

    def on_kept(self, sources: Sequence[KeptLayout], target: KeptLayout) -> Make:
        """The kernel ``(map, mask, …, limit, result, mask)`` on the kept maps of a stream, if `in_streams`."""
        raise NotImplementedError(f"{self.name} has no kernel on kept maps")

    @classmethod
    def in_streams(cls) -> bool:
        """Whether it has a kernel on kept maps."""
        return cls.on_kept is not Operator.on_kept

    def window(self) -> Window:
        """What one position of the result reads."""
        return Window()


OPERATORS: Registry[type[Operator]] = Registry("operator", ("sparseflow.ops",))


def register(operator: type[Operator]) -> type[Operator]:
    """A class decorator that puts an operator into `OPERATORS`."""
    OPERATORS.register(operator.kind)(operator)
    return operator


def operator_of(call: Call) -> Operator | None:
    """The operator on maps that ``call`` is; None if there are no kernels for it."""
    return next((found for o in OPERATORS.values() if (found := o.of(call)) is not None), None)


def by_channel(call: Call, axis: int) -> type[Operator] | None:
    """The class of an operator that works on each channel by itself; None if ``call`` mixes them."""
    return next((o for o in OPERATORS.values() if o.by_channel(call, axis)), None)
