"""What group penalties share: sums over a structure's units that gradients pass through."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure, UnitStructure
from sparseflow.train.methods.base import InTraining, TrainingSettings
from sparseflow.train.rules import Rule, Target

TINY = 1e-12
"""Under square roots, whose slope at zero is not finite."""


def unit_sums(x: Tensor, unit: tuple[int, ...]) -> Tensor:
    """Sums over boxes of extents ``unit``, the last ones ragged; shape (⌈n0/u0⌉, ⌈n1/u1⌉, …).

    Parameters
    ----------
    x : Tensor, shape of a weight
    unit : tuple of int
        As `UnitStructure.unit` gives it.
    """
    missing = [(-n) % u for n, u in zip(x.shape, unit, strict=True)]
    if any(missing):
        x = F.pad(x, [pad for m in reversed(missing) for pad in (0, m)])
    shape = [part for n, u in zip(x.shape, unit, strict=True) for part in (n // u, u)]
    return x.reshape(shape).sum(tuple(range(1, 2 * x.ndim, 2)))


class PenaltySettings(TrainingSettings):
    """The penalty's weight.

    Parameters
    ----------
    strength : float
        λ of the sum over all layers.
    """

    strength: float = Field(default=1e-4, gt=0)


class GroupPenalty(InTraining):
    """Base of regularisers that pull whole units to zero; the units with the smallest norms are removed at last."""

    Settings = PenaltySettings
    settings: PenaltySettings

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.units = {
            t.name: t.structure.unit(tuple(self.weight(t).shape))
            for t in self.targets
            if isinstance(t.structure, UnitStructure)  # as all are that are not refused
        }

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """The penalty needs units that can vanish as a whole."""
        if isinstance(structure, UnitStructure):
            return None
        return "it has no units that vanish as a whole; use admm or sr_ste"

    @abstractmethod
    def term(self, target: Target) -> Tensor:
        """What a layer adds to the penalty, λ left out; a scalar."""

    def penalty(self) -> Tensor:
        """λ times the sum of the terms of all layers."""
        terms = [self.term(target) for target in self.targets]
        return self.settings.strength * torch.stack(terms).sum() if terms else torch.zeros(())

    def squared_norms(self, target: Target) -> Tensor:
        """``‖w_g‖²`` of each unit g of a layer."""
        return unit_sums(self.weight(target).square(), self.units[target.name])

    def after_epoch(self, epoch: int) -> str:
        """The share of the squared norm in the units that would be removed now."""
        removed = total = 0.0
        for target in self.targets:
            squares = self.squared_norms(target).detach().flatten().sort().values
            total += float(squares.sum())
            removed += float(squares[: round((1 - target.density) * len(squares))].sum())
        return f"to remove {removed / total if total > 0 else 0.0:.4f}"

    def finish(self) -> dict[str, Mask]:
        """The masks of the units with the largest mean squares."""
        return self.masks_by(self.squares)
