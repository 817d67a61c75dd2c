"""Hoyer-square regularisation."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sparseflow.train.methods.base import METHODS, TrainingSettings
from sparseflow.train.methods.penalties import TINY, GroupPenalty


class HoyerSettings(TrainingSettings):
    """The penalty's weight.

    Parameters
    ----------
    strength : float
        λ of the sum over the layers.
    """

    strength: float = Field(default=1e-4, gt=0)


@METHODS.register("hoyer")
class Hoyer(GroupPenalty):
    """Adds ``λ Σ_layers (Σ_g ‖w_g‖)² / Σ_g ‖w_g‖²``: about the number of units in use, whatever their scale.

    Unlike the lasso it does not shrink what stays: scaling a layer's weights leaves it as it is.

    References
    ----------
    H. Yang, W. Wen, H. Li, "DeepHoyer: learning sparser neural network with differentiable scale-invariant
    sparsity measures", ICLR 2020, sections 4.1 and 4.2 (Hoyer-square and Group-HS).
    """

    Settings = HoyerSettings
    settings: HoyerSettings
    when = "the same structures as group_lasso, without shrinking the weights that stay"

    def penalty(self) -> Tensor:
        """``λ Σ_layers (Σ_g ‖w_g‖)² / Σ_g ‖w_g‖²``."""
        terms = []
        for target in self.targets:
            squares = self.squared_norms(target) + TINY
            terms.append(squares.sqrt().sum().square() / squares.sum())
        return self.settings.strength * torch.stack(terms).sum() if terms else torch.zeros(())
