"""Hoyer-square regularisation."""

from __future__ import annotations

from torch import Tensor

from sparseflow.train.methods.base import METHODS
from sparseflow.train.methods.penalties import TINY, GroupPenalty
from sparseflow.train.rules import Target


@METHODS.register("hoyer")
class Hoyer(GroupPenalty):
    """Adds ``λ Σ_layers (Σ_g ‖w_g‖)² / Σ_g ‖w_g‖²``: about the number of units in use, whatever their scale.

    Unlike the lasso it does not shrink what stays: scaling a layer's weights leaves it as it is.

    References
    ----------
    H. Yang, W. Wen, H. Li, "DeepHoyer: learning sparser neural network with differentiable scale-invariant
    sparsity measures", ICLR 2020, sections 4.1 and 4.2 (Hoyer-square and Group-HS).
    """

    when = "the same structures as group_lasso, without shrinking the weights that stay"

    def term(self, target: Target) -> Tensor:
        """``(Σ_g ‖w_g‖)² / Σ_g ‖w_g‖²``."""
        squares = self.squared_norms(target) + TINY
        return squares.sqrt().sum().square() / squares.sum()
