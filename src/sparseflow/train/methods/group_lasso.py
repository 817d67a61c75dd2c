"""Group lasso: structured sparsity learning."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.arrays import block_sizes
from sparseflow.train.methods.base import METHODS, TrainingSettings
from sparseflow.train.methods.penalties import TINY, GroupPenalty
from sparseflow.train.rules import Rule


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

    def __init__(
        self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: GroupLassoSettings
    ) -> None:
        super().__init__(model, rules, settings)
        self._sizes = {}
        for target in self.targets:
            weight = self.weight(target)
            sizes = block_sizes(self.units[target.name], tuple(weight.shape))
            self._sizes[target.name] = torch.tensor(sizes, dtype=weight.dtype, device=weight.device)

    def penalty(self) -> Tensor:
        """``λ Σ_g √|g| ‖w_g‖`` over the units of all layers."""
        terms = [
            (self._sizes[target.name] * (self.squared_norms(target) + TINY)).sqrt().sum()
            for target in self.targets
        ]
        return self.settings.strength * torch.stack(terms).sum() if terms else torch.zeros(())
