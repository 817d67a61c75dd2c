"""A mask: which weights are kept, and the structure that it obeys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparseflow.core.arrays import Keep, Shape
from sparseflow.errors import StructureError

if TYPE_CHECKING:
    from sparseflow.core.structures.base import Structure


@dataclass(frozen=True, eq=False)
class Mask:
    """Kept weights of one layer; invariant: ``structure.admits(keep)``.

    Attributes
    ----------
    keep : ndarray of bool, shape of the weight
        True where the weight is kept. Read-only.
    structure : Structure
        What ``keep`` obeys.

    Raises
    ------
    StructureError
        If ``keep`` is not boolean or not of the structure's form.
    """

    keep: Keep
    structure: Structure

    def __post_init__(self) -> None:
        if not self.structure.admits(self.keep):
            raise StructureError(
                f"mask of shape {self.keep.shape}: the kept positions are not of structure {self.structure}; "
                "make the mask with the structure's mask(scores, density) or use Unstructured()"
            )
        frozen = np.array(self.keep, dtype=np.bool_)
        frozen.setflags(write=False)
        object.__setattr__(self, "keep", frozen)

    @property
    def shape(self) -> Shape:
        """Shape of the weight."""
        return self.keep.shape

    @property
    def density(self) -> float:
        """Kept fraction of the weights."""
        return float(np.count_nonzero(self.keep)) / self.keep.size

    @property
    def sparsity(self) -> float:
        """Removed fraction of the weights."""
        return 1.0 - self.density

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.structure == other.structure and np.array_equal(self.keep, other.keep)

    __hash__ = None  # type: ignore[assignment]  # an array has no hash
