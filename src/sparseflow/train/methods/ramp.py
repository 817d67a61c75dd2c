"""Gradual sparsity: the cubic ramp, and what lies between a dense layer and its structure."""

from __future__ import annotations

from math import ceil

from pydantic import Field, model_validator

from sparseflow.core.structures import NM, Structure
from sparseflow.train.methods.base import TrainingSettings


class RampSettings(TrainingSettings):
    """When the sparsity rises, and how often the masks are made anew.

    Parameters
    ----------
    begin, end : float
        Fractions of the training at which the ramp begins and reaches the density of the rules.
    update_every : int
        Steps of the optimiser between two masks.

    References
    ----------
    M. Zhu, S. Gupta, "To prune, or not to prune", arXiv 1710.01878, section 3.
    """

    begin: float = Field(default=0.0, ge=0, lt=1)
    end: float = Field(default=0.6, gt=0, le=1)
    update_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> RampSettings:
        if self.begin >= self.end:
            raise ValueError(f"begin is {self.begin}, end is {self.end}; begin < end is allowed")
        return self

    def density(self, final: float, progress: float) -> float:
        """``d_f + (1 − d_f)(1 − t)³``, where t runs from 0 at ``begin`` to 1 at ``end``."""
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return final + (1 - final) * (1 - t) ** 3


def no_ramp(structure: Structure) -> str | None:
    """Why nothing lies between dense and ``structure``, or None if something does."""
    if structure.fixed_density is None or isinstance(structure, NM):
        return None
    return (
        f"it always keeps {structure.fixed_density:.4g}, so its sparsity cannot rise gradually; "
        "use admm, sr_ste or a one-shot method"
    )


def on_the_ramp(structure: Structure, density: float) -> tuple[Structure, float]:
    """The structure and density at one moment of the ramp; N:M keeps fewer and fewer of M."""
    if isinstance(structure, NM):
        kept = min(max(ceil(density * structure.m - 1e-9), structure.n), structure.m)
        now = NM(kept, structure.m, structure.axis)
        return now, now.fixed_density
    return structure, min(density, structure.max_density)
