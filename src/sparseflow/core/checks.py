"""A user's numbers and flags."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from sparseflow.errors import SparseflowError


def whole_number(name: str, value: object, least: int, most: int | None, error: type[SparseflowError]) -> int:
    """``value`` as an int; truth values and numbers with a fraction part are refused.

    Raises
    ------
    error
        If it is no whole number, or outside of ``least`` to ``most``.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if number >= least and (most is None or number <= most):
            return number
    allowed = f"from {least} on" if most is None else f"{least} to {most}"
    raise error(f"{name}={value!r}: allowed: whole numbers {allowed}")


def flag(name: str, value: object, error: type[SparseflowError]) -> bool:
    """``value`` as a bool; what Python only takes as one is refused.

    Raises
    ------
    error
        If it is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise error(f"{name}={value!r}: allowed: True, False")
    return bool(value)
