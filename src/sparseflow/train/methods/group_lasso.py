"""Group lasso: structured sparsity learning."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sparseflow.core.structures import UnitStructure
from sparseflow.train.methods.base import METHODS, TrainingSettings
from sparseflow.train.methods.penalties import TINY, GroupPenalty, unit_sums


class GroupLassoSettings(TrainingSettings):
    """The penalty's weight.

    Parameters
    ----------
    strength : float
        λ of the sum over all groups of all layers.
    """

    strength: float = Field(default=1e-4, gt=0)


@METHODS.register("group_lasso")
class GroupLasso(GroupPenalty):
    """Adds ``λ Σ_g √|g| ‖w_g‖`` over the structure's units; for single weights that is the lasso.

    References
    ----------
    W. Wen et al., "Learning structured sparsity in deep neural networks", NIPS 2016, section 3.1; the
    factor √|g| of M. Yuan, Y. Lin, "Model selection and estimation in regression with grouped variables",
    2006, equation 2.
    """

    Settings = GroupLassoSettings
    settings: GroupLassoSettings
    when = "filters, channels, columns or blocks, when few units carry most of the network"

    def penalty(self) -> Tensor:
        """``λ Σ_g √|g| ‖w_g‖`` over the units of all layers."""
        terms = []
        for target in self.targets:
            weight = self.weight(target)
            assert isinstance(target.structure, UnitStructure)  # refuses() said so
            sizes = unit_sums(torch.ones_like(weight), target.structure.unit(tuple(weight.shape)))
            terms.append((sizes * (self.squared_norms(target) + TINY)).sqrt().sum())
        return self.settings.strength * torch.stack(terms).sum() if terms else torch.zeros(())
