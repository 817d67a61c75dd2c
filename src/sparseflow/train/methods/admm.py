"""ADMM: the loss is minimised while the weights are drawn towards their projection onto the structure."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.core.structures import parse_structure
from sparseflow.train.methods.base import METHODS, InTraining, TrainingSettings
from sparseflow.train.rules import Rule, Target, scores_of, weight_of, with_library


class AdmmSettings(TrainingSettings):
    """The penalty's ramp and the rhythm of updates.

    Parameters
    ----------
    epochs : int
        Length of the ADMM training; the ramp is spread over it.
    rho : float
        First ρ.
    rho_factor : float
        What each step of the ramp multiplies ρ by.
    rho_steps : int
        Number of values of ρ.
    update_every : int
        Epochs between updates of Z and U.

    References
    ----------
    T. Zhang et al., "A systematic DNN weight pruning framework using ADMM", ECCV 2018, section 3.
    """

    rho: float = Field(default=1e-4, gt=0)
    rho_factor: float = Field(default=10.0, ge=1)
    rho_steps: int = Field(default=4, ge=1)
    update_every: int = Field(default=1, ge=1)

    def rho_at(self, epoch: int) -> float:
        """ρ after ``epoch`` completed epochs."""
        step = min(epoch * self.rho_steps // self.epochs, self.rho_steps - 1)
        return float(self.rho * self.rho_factor**step)


@METHODS.register("admm")
class ADMM(InTraining):
    """Alternating direction method of multipliers: weights W, their structured copy Z, scaled duals U.

    W minimises ``loss + ρ/2 ‖W − Z + U‖²`` by the user's optimiser; every few epochs ``Z = Proj(W + U)``,
    then ``U += W − Z``. When ρ changes, U is scaled by the inverse factor, so that the
    unscaled dual ρU stays.

    Parameters
    ----------
    model : nn.Module
    rules : sequence of Rule
    settings : AdmmSettings

    Notes
    -----
    In a loop of one's own: add `penalty` to the loss of each batch, call `after_epoch` (or `update` and
    `set_rho`) after each epoch, then ``MaskedWeights(model, admm.finish())`` and retrain.

    References
    ----------
    S. Boyd et al., "Distributed optimization and statistical learning via ADMM", 2011, sections 3.1.1
    (scaled form) and 3.4.1 (varying ρ); T. Zhang et al., arXiv 1804.03294, section 3. The projection
    keeps the units with the largest sums of squares, which is the Euclidean one for units of equal size.
    """

    Settings = AdmmSettings
    settings: AdmmSettings
    when: ClassVar[str] = "the most accuracy at high sparsity, in any structure, when there is time to train"

    def __init__(
        self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: AdmmSettings
    ) -> None:
        super().__init__(model, rules, settings)
        self.rho = settings.rho
        self.updates = 0
        self.targets = tuple(
            Target(t.name, with_library(t.structure, scores_of(weight_of(model, t.name), 2)), t.density)
            for t in self.targets
        )
        self.z: dict[str, Tensor] = {}
        self.u: dict[str, Tensor] = {}
        for target in self.targets:
            weight = weight_of(model, target.name).detach()
            self.z[target.name] = self._project(target, weight)
            self.u[target.name] = torch.zeros_like(weight)

    def penalty(self) -> Tensor:
        """``Σ ρ/2 ‖W − Z + U‖²`` over the layers; a scalar to add to the loss."""
        terms = []
        for target in self.targets:
            distance = weight_of(self.model, target.name) - self.z[target.name] + self.u[target.name]
            terms.append(distance.square().sum())
        if not terms:
            return torch.zeros(())
        return 0.5 * self.rho * torch.stack(terms).sum()

    def update(self) -> None:
        """``Z = Proj(W + U)``, then ``U += W − Z``, for each layer."""
        with torch.no_grad():
            for target in self.targets:
                weight, u = weight_of(self.model, target.name), self.u[target.name]
                self.z[target.name] = self._project(target, weight + u)
                u.add_(weight - self.z[target.name])
            self.updates += 1

    def set_rho(self, rho: float) -> None:
        """Change ρ and scale U so that ρU stays."""
        for u in self.u.values():
            u.mul_(self.rho / rho)
        self.rho = rho

    def after_epoch(self, epoch: int) -> str:
        """Update Z and U if it is time, and move ρ along its ramp."""
        if epoch % self.settings.update_every == 0:
            self.update()
        rho = self.settings.rho_at(epoch)
        if rho != self.rho and epoch < self.settings.epochs:
            self.set_rho(rho)
        return f"rho {self.rho:.1e} residual {self.residual():.3f}"

    def residual(self) -> float:
        """``‖W − Z‖ / ‖W‖`` over all layers: 0 when the weights have the structure."""
        with torch.no_grad():
            distance = total = 0.0
            for target in self.targets:
                weight = weight_of(self.model, target.name)
                distance += float((weight - self.z[target.name]).square().sum())
                total += float(weight.square().sum())
            return (distance / total) ** 0.5 if total > 0 else 0.0

    def finish(self) -> dict[str, Mask]:
        """The masks of the projection of the weights as they are now."""
        return {
            t.name: t.structure.mask(scores_of(weight_of(self.model, t.name), 2), t.density)
            for t in self.targets
        }

    def state_dict(self) -> dict[str, Any]:
        """ρ, Z, U, the number of updates and the structures with their libraries."""
        return {
            "rho": self.rho,
            "updates": self.updates,
            "structures": {t.name: str(t.structure) for t in self.targets},
            "z": dict(self.z),
            "u": dict(self.u),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises
        ------
        ValueError
            If it is of other layers.
        """
        shapes = {name: tuple(z.shape) for name, z in self.z.items()}
        if {name: tuple(z.shape) for name, z in state["z"].items()} != shapes or set(state["u"]) != set(
            shapes
        ):
            raise ValueError("its ADMM variables are of other layers")
        self.targets = tuple(
            Target(t.name, parse_structure(state["structures"][t.name]), t.density) for t in self.targets
        )
        for name, z in self.z.items():
            self.z[name] = state["z"][name].to(z.device, copy=True)
            self.u[name] = state["u"][name].to(z.device, copy=True)
        self.rho, self.updates = float(state["rho"]), int(state["updates"])

    @staticmethod
    def _project(target: Target, weight: Tensor) -> Tensor:
        keep = torch.from_numpy(target.structure.mask(scores_of(weight, 2), target.density).keep.copy())
        return weight * keep.to(weight.device)
