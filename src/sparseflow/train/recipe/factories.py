"""A user's own model and loaders, named in a recipe as ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from sparseflow.errors import RecipeError, first_line
from sparseflow.train.trainer import Loader


def model_from(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """The module that ``factory`` returns for ``arguments``.

    Raises
    ------
    RecipeError
        If it cannot be imported or called, or returns no `nn.Module`.
    """
    made = _call("model.factory", factory, arguments)
    if not isinstance(made, nn.Module):
        raise RecipeError(
            f"model.factory: {factory!r} returned {type(made).__name__}; a torch.nn.Module is allowed"
        )
    return made


def loaders_from(factory: str, arguments: dict[str, Any]) -> tuple[Loader, Loader]:
    """The training and the test loader that ``factory`` returns for ``arguments``.

    Raises
    ------
    RecipeError
        If it cannot be imported or called, or returns no two loaders with a length.
    """
    made = _call("data.factory", factory, arguments)
    pair = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    if not all(hasattr(part, "__iter__") and hasattr(part, "__len__") for part in pair):
        raise RecipeError(
            f"data.factory: {factory!r} returned {type(made).__name__}; a tuple (train, test) of two loaders with "
            "a length, such as DataLoader, is allowed"
        )
    train, test = pair
    return train, test  # type: ignore[return-value]


def _call(place: str, factory: str, arguments: dict[str, Any]) -> Any:
    function = _import(place, factory)
    try:
        return function(**arguments)
    except Exception as error:  # it is the user's code: any failure is told with its place
        raise RecipeError(
            f"{place}: {factory!r} failed ({type(error).__name__}: {first_line(error)}); correct it or its arguments"
        ) from error


def _import(place: str, factory: str) -> Callable[..., Any]:
    """The function; modules beside the working folder are found, as ``python -m`` would."""
    module_name, colon, name = factory.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise RecipeError(f"{place}: found {factory!r}; 'module:function' is allowed")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise RecipeError(
            f"{place}: module {module_name!r} cannot be imported ({type(error).__name__}: {first_line(error)}); run "
            "from its folder or install it"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        known = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise RecipeError(f"{place}: {module_name!r} has no function {name!r}; it has {known or 'none'}")
    function: Callable[..., Any] = found
    return function
