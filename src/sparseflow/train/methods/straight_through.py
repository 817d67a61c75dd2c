"""What straight-through methods share: latent dense weights are trained, the network computes with masked ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.train.criteria.base import Scores
from sparseflow.train.methods.base import InTraining
from sparseflow.train.rules import Rule, Target, array_of, with_chosen_libraries


class StraightThrough(InTraining):
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

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.targets = with_chosen_libraries(model, self.targets)
        self.latent: dict[str, Tensor] = {}
        self.keep: dict[str, Tensor] = {}
        for target in self.targets:
            self.latent[target.name] = self.weight(target).detach().clone()
            self.keep[target.name] = torch.ones_like(self.latent[target.name], dtype=torch.bool)
        self.steps, self.step = 1, 0
        self.seen = Scores(self.settings.criterion)

    def masks_now(self) -> dict[str, Mask] | None:
        """The masks that the next batch sees, or None to leave them."""
        raise NotImplementedError

    def shape_gradient(self, weight: nn.Parameter, latent: Tensor, keep: Tensor, name: str) -> None:
        """Change ``weight.grad``, the gradient at the masked weights, which is applied to ``latent``."""

    @property
    def progress(self) -> float:
        """Completed fraction of the training, in 0..1."""
        return float(min(self.step / (self.steps * self.settings.epochs), 1.0))

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Take note of where the training is, and mask the weights if it is time."""
        self.steps, self.step = steps, epoch * steps
        self._mask()

    def before_step(self) -> None:
        """Put the latent weights into the model, for the optimiser to change."""
        with torch.no_grad():
            for target in self.targets:
                weight, latent = self.weight(target), self.latent[target.name]
                self.seen.add_gradient(target.name, latent, weight.grad)
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

    def scores(self, target: Target) -> Array:
        """The criterion's scores of the latent weights."""
        return array_of(self.seen.so_far(target.name, self.latent[target.name]))

    def final_masks(self) -> dict[str, Mask]:
        """The masks at the density of the rules."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Latent weights, masks, what the criterion has seen, and the structures with their libraries."""
        return {
            "seen": self.seen.state_dict(),
            "latent": dict(self.latent),
            "keep": dict(self.keep),
            "structures": {t.name: str(t.structure) for t in self.targets},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises
        ------
        ValueError
            If it is of other layers.
        """
        shapes = {name: tuple(latent.shape) for name, latent in self.latent.items()}
        if {name: tuple(latent.shape) for name, latent in state["latent"].items()} != shapes:
            raise ValueError("its latent weights are of other layers")
        self.targets = tuple(t.restored(state["structures"][t.name]) for t in self.targets)
        for name in self.latent:
            self.latent[name] = state["latent"][name].to(self.latent[name].device, copy=True)
            self.keep[name] = state["keep"][name].to(self.latent[name].device, copy=True)
        self.seen.load_state_dict(state["seen"], {n: latent.device for n, latent in self.latent.items()})

    def _mask(self) -> None:
        masks = self.masks_now()
        for name, mask in (masks or {}).items():
            self.keep[name] = torch.from_numpy(mask.keep.copy()).to(self.latent[name].device)
        with torch.no_grad():
            for target in self.targets:
                self.weight(target).copy_(self.latent[target.name] * self.keep[target.name])
