"""Movement pruning: weights that training moves towards zero are removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.train.methods.base import METHODS
from sparseflow.train.methods.ramp import RampSettings, no_ramp, on_the_ramp
from sparseflow.train.methods.straight_through import StraightThrough
from sparseflow.train.rules import Rule, scores_of


class MovementSettings(RampSettings):
    """The ramp; it begins late enough for the scores to have moved."""

    begin: float = 0.1


@METHODS.register("movement")
class Movement(StraightThrough):
    """Keeps the weights with the highest ``S = −Σ_steps ∂L/∂W ⊙ W``: those that grow away from zero.

    The network computes with ``W' = W ⊙ M(S)``; the straight-through gradient of S is
    ``∂L/∂W' ⊙ W``, that of W is masked. Density falls along the cubic ramp. The step size of S scales all
    scores of a layer alike, so it changes no mask and is left out.

    References
    ----------
    V. Sanh, T. Wolf, A. M. Rush, "Movement pruning: adaptive sparsity by fine-tuning", NeurIPS 2020,
    section 3, table 1 (hard movement).
    """

    Settings = MovementSettings
    settings: MovementSettings
    when = "fine-tuning a pretrained network on a task of its own"

    def __init__(
        self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: MovementSettings
    ) -> None:
        super().__init__(model, rules, settings)
        self.scores = {name: torch.zeros_like(latent) for name, latent in self.latent.items()}

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Structures of fixed density except N:M have no ramp."""
        return no_ramp(structure)

    def shape_gradient(self, weight: nn.Parameter, latent: Tensor, keep: Tensor, name: str) -> None:
        """Move the scores; then only kept weights follow the gradient."""
        self.scores[name].sub_(weight.grad * latent)
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
            scores = self.scores[target.name]
            masks[target.name] = structure.mask(scores_of(scores - scores.min()), density)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """What every straight-through method has, and the scores."""
        return super().state_dict() | {"scores": dict(self.scores)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        for name, scores in self.scores.items():
            self.scores[name] = state["scores"][name].to(scores.device, copy=True)
