"""Values that come from outside: a user's numbers and flags, and records read from a file."""

from __future__ import annotations

import dataclasses
import types
from numbers import Integral
from typing import Any, Union, get_args, get_origin, get_type_hints

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


def check_record(record: Any) -> None:
    """Nothing, if every field of a dataclass has the type that it declares, in nested records too.

    An int stands for a float, as in JSON; Python itself checks none of this.

    Raises
    ------
    TypeError
        The first field that has another type, by its path (``plan.layers[0].density``).
    """
    for name, hint in get_type_hints(type(record)).items():
        _check(getattr(record, name), hint, name)


def _check(value: Any, hint: Any, path: str) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return
        hint = next(a for a in arguments if a is not types.NoneType)
        _check(value, hint, path)
    elif origin is tuple:
        _check_tuple(value, arguments, path)
    elif origin is dict:
        _expect(isinstance(value, dict), value, "dict", path)
        for key, item in value.items():
            _check(key, arguments[0], path)
            _check(item, arguments[1], f"{path}[{key!r}]")
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _expect(type(value) is hint, value, hint.__name__, path)
        for name, inner in get_type_hints(hint).items():
            _check(getattr(value, name), inner, f"{path}.{name}")
    elif hint is not Any:
        allowed = (int, float) if hint is float else (hint,)
        _expect(type(value) in allowed, value, hint.__name__, path)


def _check_tuple(value: Any, arguments: tuple[Any, ...], path: str) -> None:
    _expect(isinstance(value, tuple), value, "tuple", path)
    hints = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
    _expect(len(hints) == len(value), value, f"tuple of {len(hints)}", path)
    for i, (item, hint) in enumerate(zip(value, hints, strict=True)):
        _check(item, hint, f"{path}[{i}]")


def _expect(right: bool, value: Any, wanted: str, path: str) -> None:
    if not right:
        found = repr(value)
        found = found if len(found) <= 40 else f"{found[:37]}..."
        raise TypeError(f"{path}: found {found}, expected {wanted}")
