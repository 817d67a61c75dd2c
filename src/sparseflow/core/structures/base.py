"""What every structure answers: does it fit a weight, the mask for scores, the smallest mask over zeros."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from sparseflow.core.arrays import (
    Array,
    Keep,
    Shape,
    block_sizes,
    expand_blocks,
    reduce_blocks,
    round_half_up,
    top_k,
)
from sparseflow.core.mask import Mask
from sparseflow.errors import StructureError
from sparseflow.registry import Registry

DENSITY_TOLERANCE = 1e-3
"""How far a requested density may lie from the one that a structure fixes (0.444 is taken for 4/9)."""


class Structure(ABC):
    """The form of a layer's zeros. Subclasses are frozen dataclasses, one a file, registered in `STRUCTURES`.

    Weights are OIHW for a convolution (axis 0 filters, axis 1 input channels of the group, then the kernel's
    positions) and (out, in) for a linear layer.

    Attributes
    ----------
    name : str
        The word of the grammar.
    grammar, example : str
        How `parse_structure` reads it, and one instance of that.
    """

    name: ClassVar[str]
    grammar: ClassVar[str]
    example: ClassVar[str]

    @property
    def brief(self) -> str:
        """Its text without long parameters, for tables and sentences."""
        return str(self)

    @property
    def fixed_density(self) -> float | None:
        """The only density that the structure can have, or None when it is free."""
        return None

    @property
    def max_density(self) -> float:
        """The largest density that the structure can have."""
        return 1.0 if self.fixed_density is None else self.fixed_density

    def check(self, shape: Shape) -> None:
        """Nothing, if weights of ``shape`` can have this structure.

        Raises
        ------
        StructureError
            With the reason, if not.
        """
        if not 2 <= len(shape) <= 5 or min(shape) < 1:
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} is neither (out, in) nor (out, in, *kernel) with "
                "positive sizes; leave this parameter dense"
            )

    def mask(self, scores: Array, density: float) -> Mask:
        """The mask that keeps the highest scores in this structure's form.

        The number of kept units is `round_half_up` of density × units (the structure says what its units
        are); a unit's score is the mean of its weights' scores, ties go to the lower index.

        Parameters
        ----------
        scores : ndarray, shape of the weight
            Finite and ≥ 0, such as magnitudes or squares.
        density : float
            Fraction to keep, in [0, 1].

        Raises
        ------
        StructureError
            For scores or a density out of range, or a shape that does not fit.
        """
        scores = self._checked_scores(scores)
        density = self.check_density(density)
        return Mask(self.select_batch(scores[None], density)[0], self)

    def check_density(self, density: float) -> float:
        """``density`` if the structure can have it (the fixed one exactly, if there is one).

        Raises
        ------
        StructureError
        """
        value = float(density)
        if not 0.0 <= value <= 1.0:
            raise StructureError(f"{self}: density {density} is outside [0, 1]; density is the kept fraction")
        fixed, most = self.fixed_density, self.max_density
        if fixed is not None and abs(value - fixed) > DENSITY_TOLERANCE:
            raise StructureError(
                f"{self}: density {value:g} asked for, but this structure always keeps {fixed:.4g} "
                f"(sparsity {1 - fixed:.4g}); ask for that or choose another structure"
            )
        if value > most + DENSITY_TOLERANCE:
            raise StructureError(
                f"{self}: density {value:g} asked for, but this structure keeps at most {most:.4g} "
                f"(sparsity at least {1 - most:.4g}); ask for a higher sparsity or choose another structure"
            )
        return fixed if fixed is not None else min(value, most)

    def cover(self, keep: Array) -> Keep | None:
        """The smallest mask of this structure that keeps all of ``keep``, or None if there is none.

        Raises
        ------
        StructureError
            If ``keep`` is not boolean or its shape does not fit.
        """
        keep = np.asarray(keep)
        if keep.dtype != np.bool_:
            raise StructureError(
                f"{self}: a mask of type {keep.dtype} was given where bool is needed; use keep = weight != 0"
            )
        self.check(keep.shape)
        covered = self.cover_batch(keep[None])
        return None if covered is None else covered[0]

    def admits(self, keep: Array) -> bool:
        """Whether ``keep`` is exactly of this structure's form."""
        covered = self.cover(keep)
        return covered is not None and np.array_equal(covered, keep)

    @abstractmethod
    def select_batch(self, scores: Array, density: float) -> Keep:
        """`mask` for a batch of weights (batch, *shape) of equal shape, arguments already checked."""

    @abstractmethod
    def cover_batch(self, keep: Keep) -> Keep | None:
        """`cover` for a batch of masks (batch, *shape), arguments already checked."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that `parse_structure` reads back."""

    @classmethod
    @abstractmethod
    def from_text(cls, arguments: str) -> Self:
        """The structure for what follows ``name:`` in the grammar ('' if nothing does)."""

    def _checked_scores(self, scores: Array) -> Array:
        scores = np.asarray(scores)
        self.check(scores.shape)
        if scores.dtype not in (np.float32, np.float64):
            scores = scores.astype(np.float32 if scores.dtype.itemsize <= 2 else np.float64)
        # min and max see NaN and infinities without an array of their own
        low, high = float(scores.min()), float(scores.max())
        if not (low >= 0.0 and high < np.inf):
            found = "NaN" if np.isnan(low) or np.isnan(high) else f"{low:g} to {high:g}"
            raise StructureError(
                f"{self}: scores of shape {scores.shape} range over {found}; they must be finite and >= 0, "
                "such as the weights' magnitudes"
            )
        return scores

    @classmethod
    def _sizes(cls, arguments: str, text: str, separator: str, *counts: int) -> tuple[int, ...]:
        """The unsigned decimal integers that ``text``, all or a part of ``arguments``, joins by ``separator``."""
        parts = text.split(separator)
        if len(parts) not in counts or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
            raise cls._syntax_error(arguments)
        return tuple(int(part) for part in parts)

    @classmethod
    def _syntax_error(cls, arguments: str) -> StructureError:
        text = f"{cls.name}:{arguments}" if arguments else cls.name
        return StructureError(
            f"structure {text!r} cannot be read; write {cls.grammar}, such as {cls.example}"
        )

    def _check_positive(self, **sizes: Any) -> None:
        for key, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise StructureError(
                    f"{type(self).__name__}: {key} is {value!r}; it must be a positive integer, as in {self.example}"
                )


class UnitStructure(Structure):
    """A structure whose weights are kept or removed in units: boxes of equal extents, the last ones ragged.

    The kept number of *units* is exact, `round_half_up` of density × units; where the last units are ragged
    the kept fraction of *weights* may therefore differ a little from the density asked for.
    """

    @abstractmethod
    def unit(self, shape: Shape) -> Shape:
        """Extents of a unit along each axis of a weight of ``shape``."""

    def select_batch(self, scores: Array, density: float) -> Keep:
        shape = scores.shape[1:]
        unit = self.unit(shape)
        if all(extent == 1 for extent in unit):
            flat = scores.reshape(len(scores), -1)
            return top_k(flat, round_half_up(density * flat.shape[1])).reshape(scores.shape)
        sums = reduce_blocks(np.add, scores.astype(np.float64), (1, *unit))
        means = sums / block_sizes(unit, shape)
        flat = means.reshape(len(scores), -1)
        keep = top_k(flat, round_half_up(density * flat.shape[1])).reshape(means.shape)
        return expand_blocks(keep, (1, *unit), scores.shape)

    def cover_batch(self, keep: Keep) -> Keep:
        unit = (1, *self.unit(keep.shape[1:]))
        if all(extent == 1 for extent in unit):
            return keep
        return expand_blocks(reduce_blocks(np.logical_or, keep, unit), unit, keep.shape)


class GroupStructure(Structure):
    """A structure that keeps the same number of weights in every group, so that its density is fixed."""

    @abstractmethod
    def group(self) -> Shape:
        """Extents of a group along the leading axes of a weight; 1 along the rest."""


class PlainUnit(UnitStructure):
    """A unit structure without parameters: its text is its name."""

    def __init_subclass__(cls) -> None:
        cls.grammar = cls.example = cls.name

    def __str__(self) -> str:
        return self.name

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        if arguments:
            raise cls._syntax_error(arguments)
        return cls()


STRUCTURES: Registry[type[Structure]] = Registry("structure")
"""All structures by the first word of their grammar."""
