"""Frozen dataclasses as plain JSON data and back, by their type hints: the one codec of all files and IR attributes.

A dataclass is an object with a key for each field. Its fields may hold dataclasses, numbers, strings, truth values,
None, enumerations (by value), element types (by name), tuples, lists, mappings with keys of strings or whole numbers,
unions of these, and ``Any``, which is plain JSON data. NumPy scalars are written as numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from sparseflow.core.element_type import ELEMENT_TYPES, QUANTISED, ElementType, element_type
from sparseflow.errors import FormatError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """``value`` as dictionaries, lists, numbers, strings, truth values and None.

    Raises
    ------
    FormatError
        If a part of it is something else.
    """
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, Enum):
        return encode(value.value)
    if isinstance(value, ElementType):
        return value.name
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if value is None:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {_written_key(k): encode(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise FormatError(
        f"{_shown(value)} cannot be written as JSON; allowed: dataclasses of numbers, strings and sequences"
    )


def decode(cls: type[T], data: Any, partial: bool = False) -> T:
    """The inverse of `encode`: an object of the dataclass ``cls``.

    Parameters
    ----------
    cls : type
    data : plain JSON data
        A whole number may stand for a float. Keys of fields with a default value may be missing.
    partial : bool
        Pass over keys that no field has: for a reader of a part of a file.

    Raises
    ------
    FormatError
        Names the path of the first entry that does not fit (``plan.layers[0].density``), what was found there and what
        is allowed.
    """
    made: T = _decode(data, cls, "", partial)
    return made


def dumps(value: Any) -> str:
    """`encode` as a string, the form of an attribute in the IR."""
    return json.dumps(encode(value))


def loads(cls: type[T], text: str) -> T:
    """The inverse of `dumps`.

    Raises
    ------
    FormatError
        If ``text`` is no JSON, or not that of a ``cls``.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FormatError(f"not JSON ({error})") from error
    return decode(cls, data)


def _written_key(key: Any) -> str:
    plain = encode(key)
    if type(plain) not in (str, int):
        raise FormatError(f"key {_shown(key)} cannot be written as JSON; allowed: strings and whole numbers")
    return str(plain)


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    """Type hint of each field, and whether it has to be given."""
    hints = get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(cls)
        if f.init
    }


def _decode(data: Any, hint: Any, path: str, partial: bool) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if origin in (Union, types.UnionType):
        return _union(data, arguments, path, partial)
    if origin is Literal:
        if not any(data == allowed and type(data) is type(allowed) for allowed in arguments):
            raise _unlike(path, data, " or ".join(map(repr, arguments)))
        return data
    if origin in (tuple, list):
        return _sequence(data, origin, arguments, path, partial)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(data, arguments, path, partial)
    if hint is ElementType:
        known = [*ELEMENT_TYPES, *QUANTISED]
        if not isinstance(data, str) or data not in known:
            raise _unlike(path, data, " or ".join(map(repr, known)))
        return element_type(data)
    if dataclasses.is_dataclass(hint):
        return _record(data, hint, path, partial)
    if isinstance(hint, type) and issubclass(hint, Enum):
        found = next((member for member in hint if encode(member) == data), None)
        if found is None:
            raise _unlike(path, data, " or ".join(repr(member.value) for member in hint))
        return found
    return _scalar(data, hint, path)


def _scalar(data: Any, hint: Any, path: str) -> Any:
    if hint in (None, types.NoneType):
        if data is not None:
            raise _unlike(path, data, "None")
        return None
    if hint not in (bool, int, float, str):
        raise TypeError(f"{path}: a field of type {hint} has no JSON form")
    if type(data) is not hint and not (hint is float and type(data) is int):
        raise _unlike(path, data, hint.__name__)
    return hint(data)


def _record(data: Any, cls: Any, path: str, partial: bool) -> Any:
    if not isinstance(data, dict):
        raise _unlike(path, data, f"an object ({cls.__name__})")
    fields = _fields(cls)
    for key in data:
        if key not in fields and not partial:
            raise FormatError(f"{_join(path, key)}: unknown key; allowed: {', '.join(fields)}")
    for key, (_, needed) in fields.items():
        if needed and key not in data:
            found = ", ".join(map(str, data)) or "no keys"
            raise FormatError(f"{_join(path, key)}: missing; found: {found}")
    values = {
        key: _decode(data[key], hint, _join(path, key), partial)
        for key, (hint, _) in fields.items()
        if key in data
    }
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own invariant
        raise FormatError(f"{path or cls.__name__}: {error}") from error


def _sequence(data: Any, kind: Any, arguments: tuple[Any, ...], path: str, partial: bool) -> Any:
    if not isinstance(data, list | tuple):
        raise _unlike(path, data, "a list")
    open_ended = kind is list or arguments[1:] == (Ellipsis,)
    hints = arguments[:1] * len(data) if open_ended else arguments
    if len(hints) != len(data):
        raise _unlike(path, data, f"a list of {len(hints)}")
    return kind(
        _decode(item, hint, f"{path}[{i}]", partial)
        for i, (item, hint) in enumerate(zip(data, hints, strict=True))
    )


def _mapping(data: Any, arguments: tuple[Any, ...], path: str, partial: bool) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise _unlike(path, data, "an object")
    made = {}
    for key, item in data.items():
        inner = f"{path}[{key!r}]"
        made[_read_key(key, arguments[0], inner)] = _decode(item, arguments[1], inner, partial)
    return made


def _read_key(key: Any, hint: Any, path: str) -> Any:
    if hint is int and isinstance(key, str):
        try:
            return int(key)
        except ValueError:
            raise _unlike(path, key, "a whole number as key") from None
    return _decode(key, hint, path, False)


def _union(data: Any, arguments: tuple[Any, ...], path: str, partial: bool) -> Any:
    """The value of the alternative of the same type, else of the first that fits."""
    others = [a for a in arguments if a is not types.NoneType]
    if data is None and len(others) < len(arguments):
        return None
    if len(others) == 1:
        return _decode(data, others[0], path, partial)
    errors = []
    for hint in sorted(others, key=lambda a: a is not type(data)):
        try:
            return _decode(data, hint, path, partial)
        except FormatError as error:
            errors.append(str(error))
    raise FormatError("; or ".join(errors))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _unlike(path: str, data: Any, allowed: str) -> FormatError:
    return FormatError(f"{path or 'the whole'}: found {_shown(data)}, expected {allowed}")


def _shown(data: Any) -> str:
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:37]}..."
