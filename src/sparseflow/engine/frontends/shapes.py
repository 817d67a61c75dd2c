"""Sizes that a caller gives to the free dimensions of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparseflow.core.checks import whole_number
from sparseflow.errors import ImportModelError

Shapes = Mapping[str, Sequence[int]]
"""Input name → its sizes."""


def check_shapes(inputs: Sequence[str], shapes: Shapes) -> None:
    """Nothing, if ``shapes`` gives sizes of inputs.

    Raises
    ------
    ImportModelError
        If it names something else, or a size is no whole number from 1 on.
    """
    if not isinstance(shapes, Mapping):
        raise ImportModelError(
            f"shapes={shapes!r}: allowed: input name to sizes, as {{'x': (1, 3, 224, 224)}}"
        )
    for name, sizes in shapes.items():
        if name not in inputs:
            raise ImportModelError(
                f"shape of {name!r}: the model has no such input; its inputs: {', '.join(inputs)}"
            )
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise ImportModelError(f"shape of {name!r}: found {sizes!r}; allowed: sizes, as (1, 3, 224, 224)")
        for axis, size in enumerate(sizes):
            whole_number(f"shape of {name!r}: axis {axis}", size, 1, None, ImportModelError)


def fit_shape(
    name: str, declared: Sequence[int | str], wanted: Sequence[int] | None
) -> list[tuple[int, int]]:
    """The (axis, size) pairs that bind the free axes of ``declared``.

    Raises
    ------
    ImportModelError
        If a free axis has no size, or a size contradicts the declared shape.
    """
    text = ",".join(map(str, declared))
    if wanted is None:
        if any(not isinstance(d, int) for d in declared):
            raise ImportModelError(
                f"input {name!r}: shape [{text}] has free dimensions; bind them all, e.g. --shape {name}="
                + ",".join(str(d) if isinstance(d, int) else "1" for d in declared)
            )
        return []
    given = ",".join(map(str, wanted))
    clash = any(isinstance(d, int) and d != w for d, w in zip(declared, wanted, strict=False))
    if len(wanted) != len(declared) or clash:
        raise ImportModelError(f"input {name!r}: shape {given} does not fit the model's [{text}]")
    return [
        (i, int(w)) for i, (d, w) in enumerate(zip(declared, wanted, strict=True)) if not isinstance(d, int)
    ]
