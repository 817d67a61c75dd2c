"""Movement pruning: weights that training moves towards zero are removed."""

from __future__ import annotations

from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.train.methods.base import METHODS
from sparseflow.train.methods.ramp import RampSettings, no_ramp, on_the_ramp
from sparseflow.train.methods.scored import TrainedCriterion
from sparseflow.train.methods.straight_through import StraightThrough


class MovementSettings(RampSettings):
    """The ramp, which begins late enough for the scores to have moved, and what the weights are judged by.

    Parameters
    ----------
    criterion : str
        The paper's is movement.
    """

    begin: float = 0.1
    criterion: TrainedCriterion = "movement"


@METHODS.register("movement")
class Movement(StraightThrough):
    """Keeps the weights with the highest ``S = −Σ_steps ∂L/∂W ⊙ W``: those that grow away from zero.

    The network computes with ``W' = W ⊙ M(S)``; the straight-through gradient of S is
    ``∂L/∂W' ⊙ W``, that of W is masked. Density falls along the cubic ramp. Other criteria take the place of S.

    References
    ----------
    V. Sanh, T. Wolf, A. M. Rush, "Movement pruning: adaptive sparsity by fine-tuning", NeurIPS 2020,
    section 3, table 1 (hard movement).
    """

    Settings = MovementSettings
    settings: MovementSettings
    when = "fine-tuning a pretrained network on a task of its own"

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Structures of fixed density except N:M have no ramp."""
        return no_ramp(structure)

    def shape_gradient(self, weight: nn.Parameter, latent: Tensor, keep: Tensor, name: str) -> None:
        """Only kept weights follow the gradient."""
        weight.grad.mul_(keep)

    def masks_now(self) -> dict[str, Mask] | None:
        """The masks of the highest scores at the ramp's density."""
        if self.progress <= self.settings.begin or self.step % self.settings.update_every:
            return None
        return self.final_masks()

    def final_masks(self) -> dict[str, Mask]:
        """The masks of the highest scores at the density of this moment; the rules' at the end."""
        masks = {}
        for target in self.targets:
            density = self.settings.density(target.density, self.progress)
            structure, density = on_the_ramp(target.structure, density)
            masks[target.name] = structure.mask(self.scores(target), density)
        return masks
