"""Reading strict TOML files: what they hold, and what is wrong with it in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sparseflow.errors import RecipeError, first_line


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises
    ------
    RecipeError
        If the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML ({first_line(error)}); correct the file") from error


def describe(
    error: ValidationError,
    schema: type[BaseModel],
    place: str = "",
    sections: Mapping[str, type[BaseModel]] | None = None,
) -> str:
    """A strict schema's first complaint in one line: the key's path, what was found, what is allowed.

    Parameters
    ----------
    error : ValidationError
    schema : type of BaseModel
        Whose keys an unknown one could have been.
    place : str
        Path of the schema itself.
    sections : mapping, optional
        Schemas of the parts, by their key.
    """
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _detail(details[0], schema, place, sections or {}) + more


def _detail(
    detail: ErrorDetails, schema: type[BaseModel], path: str, sections: Mapping[str, type[BaseModel]]
) -> str:
    for i, part in enumerate(detail["loc"]):
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        if i == 0:
            schema = sections.get(part, schema)
        path += f".{part}" if path else str(part)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = ", ".join(schema.model_fields)
        return f"{path}: unknown key; known here: {known}; correct or remove it"
    if detail["type"] == "missing":
        return f"{path}: missing; add it"
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path or 'recipe'}: found {detail['input']!r}; {message[:1].lower()}{message[1:]}"
