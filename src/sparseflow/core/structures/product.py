"""Products of structures: a grouped one (fixed density) inside the units of another."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparseflow.core.arrays import Array, Keep, Shape
from sparseflow.core.structures.base import STRUCTURES, GroupStructure, Structure, UnitStructure
from sparseflow.core.structures.connectivity import Connectivity
from sparseflow.core.structures.parse import parse_structure
from sparseflow.core.structures.pattern import Library, Pattern
from sparseflow.errors import StructureError


class ProductStructure(Structure):
    """Whole units are removed, and the units that stay keep the inner structure's groups.

    The inner structure gives its fixed density, the outer one the rest: `round_half_up` of
    density / inner density × units is the exact number of units kept. The inner mask is made first, the units
    are then scored by what it leaves of them.
    """

    @property
    @abstractmethod
    def parts(self) -> tuple[GroupStructure, UnitStructure]:
        """The inner and the outer structure."""

    @property
    def max_density(self) -> float:
        return self.parts[0].max_density

    def check(self, shape: Shape) -> None:
        inner, outer = self.parts
        inner.check(shape)
        outer.check(shape)
        unit = outer.unit(shape)
        group = inner.group() + (1,) * (len(shape) - len(inner.group()))
        for u, g, size in zip(unit, group, shape, strict=True):
            if u % g and u != size:
                raise StructureError(
                    f"{self}: on a weight of shape {tuple(shape)} a unit of {outer} is {unit} and does not hold whole "
                    f"groups {group} of {inner}; choose units that do, such as {inner}+filter"
                )

    def select_batch(self, scores: Array, density: float) -> Keep:
        inner, outer = self.parts
        keep = inner.select_batch(scores, inner.max_density)
        units = outer.select_batch(np.where(keep, scores, 0), min(density / inner.max_density, 1.0))
        return keep & units

    def cover_batch(self, keep: Keep) -> Keep | None:
        inner, outer = self.parts
        groups, units = inner.cover_batch(keep), outer.cover_batch(keep)
        return None if groups is None or units is None else groups & units

    @property
    def brief(self) -> str:
        return "+".join(part.brief for part in self.parts)

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


@STRUCTURES.register("pattern+connectivity")
@dataclass(frozen=True)
class PatternConnectivity(ProductStructure):
    """Whole 3×3 kernels are removed, those that stay keep ``entries`` positions in one of a few patterns.

    The fields are those of `Pattern`; the total density is at most entries/9.

    References
    ----------
    Niu et al., *PatDNN*, ASPLOS 2020, section 4.1.
    """

    entries: int = 4
    library: Library | None = None
    patterns: int = 8
    shared: tuple[int, int] = (1, 1)

    name: ClassVar[str] = "pattern+connectivity"
    grammar: ClassVar[str] = "pattern:ENTRIES+connectivity or pattern:ENTRIES/FILTERSxCHANNELS+connectivity"
    example: ClassVar[str] = "pattern:4+connectivity"

    def __post_init__(self) -> None:
        self.parts  # noqa: B018  (they check their own)

    @property
    def parts(self) -> tuple[GroupStructure, UnitStructure]:
        return Pattern(self.entries, self.library, self.patterns, self.shared), Connectivity(*self.shared)

    @property
    def brief(self) -> str:
        return f"{self.parts[0].brief}+connectivity"

    def __str__(self) -> str:  # the units are those that share a pattern
        return f"{self.parts[0]}+connectivity"

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        pattern = parse_structure(arguments.partition("+")[0])
        if not isinstance(pattern, Pattern) or arguments.partition("+")[2] != "connectivity":
            raise cls._syntax_error(arguments)
        return cls(pattern.entries, pattern.library, pattern.patterns, pattern.shared)


@STRUCTURES.register("product")
@dataclass(frozen=True)
class Product(ProductStructure):
    """Any grouped structure inside any structure of units that holds whole groups, such as ``nm:2:4+filter``.

    Attributes
    ----------
    inner : GroupStructure
        `NM` or `Pattern`.
    outer : UnitStructure
        Its units must be made of whole groups of ``inner``; `check` tells for a shape.
    """

    inner: GroupStructure
    outer: UnitStructure

    name: ClassVar[str] = "product"
    grammar: ClassVar[str] = "GROUPED+UNITS"
    example: ClassVar[str] = "nm:2:4+filter"

    def __post_init__(self) -> None:
        if not isinstance(self.inner, GroupStructure) or not isinstance(self.outer, UnitStructure):
            raise StructureError(
                f"Product: {self.inner} with {self.outer}; the first must be of fixed density (nm, pattern) and the "
                "second of units (filter, channel, connectivity, block, ...), as in nm:2:4+filter"
            )
        if isinstance(self.inner, Pattern) and isinstance(self.outer, Connectivity):
            raise StructureError(
                "Product: pattern and connectivity have a class of their own; use PatternConnectivity"
            )

    @property
    def parts(self) -> tuple[GroupStructure, UnitStructure]:
        return self.inner, self.outer

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        inner, plus, outer = arguments.partition("+")
        if not plus:
            raise cls._syntax_error(arguments)
        first, second = parse_structure(inner), parse_structure(outer)
        if not isinstance(first, GroupStructure) or not isinstance(second, UnitStructure):
            raise StructureError(
                f"structure {arguments!r} cannot be read; a product is one of fixed density (nm, pattern), then one "
                "of units (filter, channel, connectivity, block, ...), as in nm:2:4+filter"
            )
        return cls(first, second)
