"""The errors that sparseflow raises, all of them one line long: where, what was found, what is allowed, what to do.

SparseflowError
├── StructureError     a structure or a mask that does not fit a weight, a density outside [0, 1]
├── FormatError        arrays that are not what an index format's specification says
├── ElementTypeError   numbers that an element type cannot hold
├── RegistryError      an unknown or a duplicate name (also a KeyError)
├── RecipeError        a recipe with an unknown key, a wrong type, a missing file
├── DataError          a data set that is missing, truncated or of the wrong shape
├── CheckpointError    a checkpoint that is truncated or belongs to another run
├── ImportModelError   a model that cannot be read or holds an unsupported operator
├── InputError         inputs of the wrong number, shape or dtype, or without values in memory; a setting out of bounds
├── CompileError       a layer or target that cannot be compiled, or an argument of `compile` that is not allowed
└── EngineError        an engine that is truncated, of another version or for another CPU
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SparseflowError(Exception):
    """Base of all errors a user can cause; the command line prints its one line and exits 1."""


class StructureError(SparseflowError, ValueError):
    """A structure, mask or density that does not fit."""


class FormatError(SparseflowError, ValueError):
    """Index arrays that do not match their format's specification."""


class ElementTypeError(SparseflowError, ValueError):
    """Numbers outside of the range of an element type, or an array of another type."""


class RegistryError(SparseflowError, KeyError):
    """A name that is not registered, or one that is registered twice."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class RecipeError(SparseflowError, ValueError):
    """A recipe that does not follow the schema."""


class DataError(SparseflowError, ValueError):
    """A data set that cannot be read."""


class CheckpointError(SparseflowError, ValueError):
    """A checkpoint that cannot be resumed from."""


class ImportModelError(SparseflowError, ValueError):
    """A model that cannot be imported."""


class InputError(SparseflowError, ValueError):
    """Inputs or settings that are not accepted."""


class CompileError(SparseflowError, ValueError):
    """A module that cannot be compiled for the target, or not in the way asked for."""


class EngineError(SparseflowError, ValueError):
    """A saved engine that cannot be loaded."""


def first_line(error: BaseException) -> str:
    """The first line with any text of an error of another library, or its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def needs(extra: str, where: str, error: type[SparseflowError]) -> Iterator[None]:
    """For imports inside the ``with`` block: a package that is not there is an ``error`` that says how to get it."""
    try:
        yield
    except ImportError as missing:
        raise error(
            f"{where}: {missing.name} is not installed; python -m pip install 'sparseflow[{extra}]'"
        ) from missing
