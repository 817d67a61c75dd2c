"""What straight-through methods share: latent dense weights are trained, the network computes with masked ones."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.train.methods.scored import ScoredTraining
from sparseflow.train.rules import Rule, Target


class StraightThrough(ScoredTraining):
    """Base of methods whose gradient is taken at the masked weights and applied to the latent ones.

    The model holds the masked weights except between `before_step` and `after_step`, so that what is
    evaluated or saved between batches is sparse. Subclasses give `masks_now` and may change gradients in
    `shape_gradient`.

    Parameters
    ----------
    model : nn.Module
    rules : sequence of Rule
    settings : TrainingSettings
        With a ``criterion``, which sees latent weights and the gradients at the masked ones.

    References
    ----------
    Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons", arXiv 1308.3432,
    section 4 (the straight-through estimator).
    """

    by_layer = ("latent", "keep")
    latent: dict[str, Tensor]
    keep: dict[str, Tensor]

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        for target in self.targets:
            self.latent[target.name] = self.weight(target).detach().clone()
            self.keep[target.name] = torch.ones_like(self.latent[target.name], dtype=torch.bool)

    @abstractmethod
    def masks_now(self) -> dict[str, Mask] | None:
        """The masks that the next batch sees, or None to leave them."""

    def shape_gradient(self, weight: nn.Parameter, latent: Tensor, keep: Tensor, name: str) -> None:
        """Change ``weight.grad``, the gradient at the masked weights, which is applied to ``latent``."""

    @property
    def progress(self) -> float:
        """Completed fraction of the training, in 0..1."""
        return float(min(self.step / (self.steps * self.settings.epochs), 1.0))

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Take note of where the training is, and mask the weights if it is time."""
        super().begin_epoch(epoch, steps)
        self._mask()

    def before_step(self) -> None:
        """Put the latent weights into the model, for the optimiser to change."""
        super().before_step()
        with torch.no_grad():
            for target in self.targets:
                weight, latent = self.weight(target), self.latent[target.name]
                if weight.grad is not None:
                    self.shape_gradient(weight, latent, self.keep[target.name], target.name)
                weight.copy_(latent)

    def after_step(self) -> None:
        """Keep the latent weights, and put the masked ones into the model."""
        self.step += 1
        with torch.no_grad():
            for target in self.targets:
                self.latent[target.name].copy_(self.weight(target))
        self._mask()

    def after_epoch(self, epoch: int) -> str:
        """The sparsity of the layers together."""
        kept = sum(int(keep.sum()) for keep in self.keep.values())
        total = sum(keep.numel() for keep in self.keep.values())
        return f"sparsity {1 - kept / max(total, 1):.4f}"

    def finish(self) -> dict[str, Mask]:
        """The masks at the density of the rules; the model gets the latent weights, for them to be applied."""
        self.step, self.steps = self.settings.epochs, 1
        masks = self.final_masks()
        with torch.no_grad():
            for target in self.targets:
                self.weight(target).copy_(self.latent[target.name])
        return masks

    def judged(self, target: Target) -> Tensor:
        """The latent weights."""
        return self.latent[target.name]

    @abstractmethod
    def final_masks(self) -> dict[str, Mask]:
        """The masks at the density of the rules."""

    def _mask(self) -> None:
        masks = self.masks_now() or {}
        with torch.no_grad():
            for target in self.targets:
                if target.name in masks:
                    self.keep[target.name] = self.kept(target, masks[target.name])
                self.weight(target).copy_(self.latent[target.name] * self.keep[target.name])
