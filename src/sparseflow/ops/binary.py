"""Functions of two tensors, element by element, that have kernels on maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.kernels.lane.operators import BINARY as CODE
from sparseflow.registry import Registry


@dataclass(frozen=True)
class Binary:
    """A function of two numbers; of zeros it makes zero.

    Attributes
    ----------
    name : str
        Relax's without ``relax.``; that of its code in `sparseflow.kernels.lane.operators` too.
    numpy : callable
        What it means; NaN in the place of an unknown number gives NaN where the result depends on it.
    non_negative : bool
        Whether numbers that are not negative stay so.
    """

    name: str
    numpy: Callable[[Array, Array], Array]
    non_negative: bool

    def __post_init__(self) -> None:
        if self.name not in CODE:
            raise ValueError(f"binary operator {self.name!r} has no code; known: {', '.join(sorted(CODE))}")


def _product(a: Array, b: Array) -> Array:
    """0 times an unknown number is 0."""
    return np.where((a == 0.0) | (b == 0.0), 0.0, a * b)


BINARY: Registry[Binary] = Registry("binary operator")
for _operator in (
    Binary("add", np.add, True),
    Binary("subtract", np.subtract, False),
    Binary("multiply", _product, True),
    Binary("maximum", np.maximum, True),
    Binary("minimum", np.minimum, True),
):
    BINARY.register(_operator.name)(_operator)


def binary(operator: str) -> Binary | None:
    """The function of a Relax operator's name; None if it is none of these."""
    name = operator.removeprefix("relax.")
    return BINARY[name] if operator != name and name in BINARY else None
