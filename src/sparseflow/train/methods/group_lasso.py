"""Group lasso: structured sparsity learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.arrays import block_sizes
from sparseflow.train.methods.base import METHODS
from sparseflow.train.methods.penalties import TINY, GroupPenalty
from sparseflow.train.rules import Rule, Target


@METHODS.register("group_lasso")
class GroupLasso(GroupPenalty):
    """Adds ``λ Σ_g √|g| ‖w_g‖`` over the structure's units; for single weights that is the lasso.

    References
    ----------
    W. Wen et al., "Learning structured sparsity in deep neural networks", NIPS 2016, section 3.1; the
    factor √|g| of M. Yuan, Y. Lin, "Model selection and estimation in regression with grouped variables",
    2006, equation 2.
    """

    when = "filters, channels, columns or blocks, when few units carry most of the network"

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self._sizes = {}
        for target in self.targets:
            weight = self.weight(target)
            sizes = block_sizes(self.units[target.name], tuple(weight.shape))
            self._sizes[target.name] = torch.from_numpy(sizes).to(weight)

    def term(self, target: Target) -> Tensor:
        """``Σ_g √|g| ‖w_g‖``."""
        return (self._sizes[target.name] * (self.squared_norms(target) + TINY)).sqrt().sum()
