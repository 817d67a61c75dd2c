"""RigL: sparse training in which small weights make room for those with large gradients."""

from __future__ import annotations

from math import cos, pi
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.train.methods.base import METHODS, TrainingSettings
from sparseflow.train.methods.scored import ScoredTraining, TrainedCriterion
from sparseflow.train.rules import Rule, Target, scores_of


class RigLSettings(TrainingSettings):
    """How often and how many weights change places.

    Parameters
    ----------
    fraction : float
        α: the fraction of the kept units that is replaced at first; it falls as half a cosine.
    update_every : int
        Steps between replacements.
    end : float
        Fraction of the training after which the masks stay.
    start : {"magnitude", "random"}
        The first masks: the largest weights of a trained network, or random ones to train from scratch.
    criterion : str
        By which weights are dropped; they always grow by their gradient.
    """

    fraction: float = Field(default=0.3, gt=0, le=1)
    update_every: int = Field(default=100, ge=1)
    end: float = Field(default=0.75, gt=0, le=1)
    start: Literal["magnitude", "random"] = "magnitude"
    criterion: TrainedCriterion = "magnitude"

    def replaced(self, progress: float) -> float:
        """``α/2 (1 + cos(π t))``, where t runs from 0 to 1 at ``end``; 0 afterwards."""
        t = progress / self.end
        return self.fraction / 2 * (1 + cos(pi * t)) if t < 1 else 0.0


@METHODS.register("rigl")
class RigL(ScoredTraining):
    """Keeps the density from the first step; drops the lowest scores and grows the largest gradients.

    Grown weights start from zero. At the end the masks have moved to where the gradient asked for weights.

    References
    ----------
    U. Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020, section 3, algorithm 1.
    """

    Settings = RigLSettings
    settings: RigLSettings
    by_layer = ("keep",)
    numbers = ("moved",)
    keep: dict[str, Tensor]
    when = 'training at a fixed, small number of weights all along; from scratch with start = "random"'

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self._fresh: dict[str, Tensor] = {}
        for target in self.targets:
            weight = self.weight(target)
            first = weight if self.settings.start == "magnitude" else torch.rand(weight.shape)
            mask = target.structure.mask(scores_of(first), target.density)
            self.keep[target.name] = self.kept(target, mask)
        self.moved = 0
        self._apply()

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Structures of fixed density have no units to drop."""
        if structure.fixed_density is None:
            return None
        return (
            "every group keeps the same number of weights, so there are no units to drop and grow; use sr_ste"
        )

    def before_step(self) -> None:
        """Replace units if it is time; then only weights that stay kept follow the gradient."""
        super().before_step()
        progress = (self.step + 1) / (self.steps * self.settings.epochs)
        replaced = self.settings.replaced(progress)
        due = (self.step + 1) % self.settings.update_every == 0 and replaced > 0
        for target in self.targets:
            gradient = self.weight(target).grad
            if gradient is None:
                continue
            before = self.keep[target.name]
            if due:
                self.keep[target.name] = self.kept(
                    target, self.replace(target, scores_of(gradient), replaced)
                )
                self._fresh[target.name] = self.keep[target.name] & ~before
                self.moved += int(self._fresh[target.name].sum())
            gradient.mul_(before & self.keep[target.name])

    def replace(self, target: Target, gradient: np.ndarray[Any, Any], fraction: float) -> Mask:
        """The mask after dropping ``fraction`` of the kept units and growing as many.

        Parameters
        ----------
        target : Target
        gradient : ndarray, shape of the weight
            Magnitudes of the dense gradient.
        fraction : float
        """
        keep = self.keep[target.name].cpu().numpy()
        survive = target.structure.mask(self.scores(target), target.density * (1 - fraction)).keep & keep
        highest = 2 * float(gradient.max()) + 1
        return target.structure.mask(np.where(survive, highest, gradient), target.density)

    def scores(self, target: Target) -> Array:
        """The criterion's scores; 0 of what is removed only: a kept weight that is still zero ranks above it."""
        scores = super().scores(target)
        keep = self.keep[target.name].cpu().numpy()
        kept: Array = np.where(keep, scores + np.finfo(scores.dtype).tiny, 0)
        return kept

    def after_step(self) -> None:
        """Set removed weights to zero, and grown ones, whatever momentum they had before."""
        self.step += 1
        self._apply()
        self.remove(self._fresh)
        self._fresh = {}

    def after_epoch(self, epoch: int) -> str:
        """How many weights were grown so far."""
        return f"grown {self.moved}"

    def finish(self) -> dict[str, Mask]:
        """The masks as they are now."""
        return {t.name: Mask(self.keep[t.name].cpu().numpy(), t.structure) for t in self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for target in self.targets:
                self.weight(target).mul_(self.keep[target.name])
