"""What a sweep consists of: one TOML file with what all cells share, the methods and the structures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from sparseflow.errors import RecipeError
from sparseflow.train.recipe.reading import describe, read_toml
from sparseflow.train.recipe.recipe import Recipe, parse_recipe
from sparseflow.train.settings import STRICT


class MethodPart(BaseModel):
    """``[methods.NAME]``: the stages that follow the dense ones."""

    model_config = STRICT
    stages: list[dict[str, Any]] = Field(min_length=1)


class StructurePart(BaseModel):
    """``[[structures]]``: what is pruned to what, and which methods are tried on it."""

    model_config = STRICT
    name: str
    rules: list[dict[str, Any]] = Field(min_length=1)
    methods: list[str] | None = None
    aim: float | None = None


class SweepFile(BaseModel):
    """A sweep file; ``recipe`` has the keys of a recipe but ``name`` and ``rules``, and only dense stages."""

    model_config = STRICT
    name: str
    recipe: dict[str, Any]
    methods: dict[str, MethodPart] = Field(min_length=1)
    structures: list[StructurePart] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One combination of method, structure and sparsity, as a recipe.

    Attributes
    ----------
    name : str
        A folder's name.
    aim : float or None
        Points of accuracy that may be lost at most.
    """

    name: str
    method: str
    structure: str
    recipe: Recipe
    aim: float | None


@dataclass(frozen=True)
class Sweep:
    """The dense network's recipe and the cells that start from it."""

    name: str
    dense: Recipe
    cells: tuple[Cell, ...]


def load_sweep(path: str | Path) -> Sweep:
    """The sweep in a TOML file.

    Raises
    ------
    RecipeError
        If the file cannot be read, a key is unknown, missing or of the wrong type, a method is not described,
        or two cells have one name; one line that names the key's path.
    """
    path = Path(path)
    try:
        content = SweepFile.model_validate(read_toml(path))
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, SweepFile)}") from None
    dense = parse_recipe({"name": f"{content.name}, dense", **content.recipe}, f"{path}: recipe")
    cells = []
    for i, structure in enumerate(content.structures):
        for method in structure.methods or content.methods:
            if method not in content.methods:
                known = ", ".join(content.methods)
                raise RecipeError(
                    f"{path}: structures[{i}].methods: no [methods.{method}]; described here: {known}"
                )
            cells.append(_cell(path, content, method, structure))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{path}: two cells are named {twice!r}; give the structures other names")
    return Sweep(content.name, dense, tuple(cells))


def _cell(path: Path, content: SweepFile, method: str, structure: StructurePart) -> Cell:
    title = f"{method}, {structure.name}"
    recipe = parse_recipe(
        content.recipe
        | {
            "name": f"{content.name}: {title}",
            "rules": structure.rules,
            "stages": [*content.recipe.get("stages", ()), *content.methods[method].stages],
        },
        f"{path}: cell {title!r}",
    )
    name = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
    return Cell(name, method, structure.name, recipe, structure.aim)
