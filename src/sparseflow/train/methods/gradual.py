"""Gradual pruning: the weights of the lowest scores are removed little by little while the network is trained."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.train.methods.base import METHODS
from sparseflow.train.methods.ramp import RampSettings, no_ramp, on_the_ramp
from sparseflow.train.methods.scored import ScoredTraining, TrainedCriterion
from sparseflow.train.rules import Target


class GradualSettings(RampSettings):
    """The ramp, and what the weights are judged by.

    Parameters
    ----------
    criterion : str
    """

    criterion: TrainedCriterion = "magnitude"


@METHODS.register("gradual")
class Gradual(ScoredTraining):
    """Keeps the highest scores by a criterion, at a density that falls as ``d_f + (1 − d_f)(1 − t)³``.

    What is removed stays at zero, so the masks are nested. N:M falls from M over M − 1, … to N of M.

    References
    ----------
    M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    arXiv 1710.01878, section 3, equation 1.
    """

    Settings = GradualSettings
    settings: GradualSettings
    by_layer = ("removed",)
    removed: dict[str, Tensor]
    when = "a good result for little effort; few settings, one training"

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Structures of fixed density except N:M have no ramp."""
        return no_ramp(structure)

    def after_step(self) -> None:
        """Make the masks anew if it is time; set removed weights to zero."""
        self.step += 1
        self.remove(self.removed)  # first, so that momentum gives no removed weight a magnitude
        progress = self.step / (self.steps * self.settings.epochs)
        if progress > self.settings.begin and self.step % self.settings.update_every == 0:
            self._remove(progress)
            self.remove(self.removed)

    def after_epoch(self, epoch: int) -> str:
        """The sparsity of the layers together."""
        removed = sum(int(r.sum()) for r in self.removed.values())
        return f"sparsity {removed / max(sum(self.weight(t).numel() for t in self.targets), 1):.4f}"

    def finish(self) -> dict[str, Mask]:
        """The masks at the density of the rules, inside of those that were there."""
        return self.masks_by(self.scores)

    def scores(self, target: Target) -> Array:
        """The criterion's scores; 0 only of what is removed, so that masks are nested."""
        scores = super().scores(target)
        removed = self.removed.get(target.name)
        if removed is None:
            return scores
        kept: Array = np.where(removed.cpu().numpy(), 0, scores + np.finfo(scores.dtype).tiny)
        return kept

    def _remove(self, progress: float) -> None:
        for target in self.targets:
            density = self.settings.density(target.density, progress)
            structure, density = on_the_ramp(target.structure, density)
            self.removed[target.name] = ~self.kept(target, structure.mask(self.scores(target), density))
