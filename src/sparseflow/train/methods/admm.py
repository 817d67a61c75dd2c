"""ADMM: the loss is minimised while the weights are drawn towards their projection onto the structure."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from sparseflow.core.mask import Mask
from sparseflow.train.levels import LEVELS, Levels, fitted_steps, known_levels, on_levels
from sparseflow.train.methods.base import METHODS, InTraining, TrainingSettings
from sparseflow.train.rules import Rule, Target, scores_of
from sparseflow.train.settings import told_in_validation


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
    steps : int
        Densities on the way. With more than one, the training is split into as many parts, each with a ramp of
        ρ of its own; at a part's end its weights are removed for good, and the next goes on to a lower
        density. Structures of fixed density are removed at the end only.
    bits : int, optional
        Weights are led to `levels` with codes of so many bits too, each filter with a step of its own.
    levels : str
        Of `LEVELS`: "uniform" or "two-powers".

    References
    ----------
    T. Zhang et al., "A systematic DNN weight pruning framework using ADMM", ECCV 2018, section 3; S. Ye et
    al., "Progressive weight pruning of deep neural networks using ADMM", arXiv 1810.07378, section 4
    (several steps); S. Ye et al., "A unified framework of DNN weight pruning and weight clustering/quantization using
    ADMM", arXiv 1811.01907, section 3 (structure and levels).
    """

    rho: float = Field(default=1e-4, gt=0)
    rho_factor: float = Field(default=10.0, ge=1)
    rho_steps: int = Field(default=4, ge=1)
    update_every: int = Field(default=1, ge=1)

    steps: int = Field(default=1, ge=1)
    bits: int | None = Field(default=None, ge=2, le=8)
    levels: Annotated[str, AfterValidator(known_levels)] = "uniform"

    @model_validator(mode="after")
    def _codes(self) -> AdmmSettings:
        with told_in_validation():
            self.level_set()
        return self

    @model_validator(mode="after")
    def _long_enough(self) -> AdmmSettings:
        if self.steps > self.epochs:
            raise ValueError(
                f"steps is {self.steps}, epochs is {self.epochs}; at most one step an epoch is allowed"
            )
        return self

    def level_set(self) -> Levels | None:
        """The levels of the weights, if ``bits`` says so."""
        return None if self.bits is None else LEVELS[self.levels](self.bits)

    def part_at(self, epoch: int) -> int:
        """Which of the ``steps`` parts comes after ``epoch`` completed epochs."""
        return min(epoch * self.steps // self.epochs, self.steps - 1)

    def rho_at(self, epoch: int) -> float:
        """ρ after ``epoch`` completed epochs."""
        step = epoch * self.steps * self.rho_steps // self.epochs - self.part_at(epoch) * self.rho_steps
        return float(self.rho * self.rho_factor ** min(step, self.rho_steps - 1))

    def density_in(self, part: int, target: Target) -> float:
        """A target's density in a part: equal factors lead from the structure's largest to the rule's."""
        most = target.structure.max_density
        if target.structure.fixed_density is not None or part == self.steps - 1:
            return target.density
        return float(most * (target.density / most) ** ((part + 1) / self.steps))


@METHODS.register("admm")
class ADMM(InTraining):
    """Alternating direction method of multipliers: weights W, their copy Z in the structure, scaled duals U.

    W minimises ``loss + ρ/2 ‖W − Z + U‖²`` by the user's optimiser; every few epochs ``Z = Proj(W + U)``,
    then ``U += W − Z``. When ρ changes, U is scaled by the inverse factor, so that the
    unscaled dual ρU stays. With levels, Proj goes on to the nearest levels of what the structure keeps, each filter
    with the step that fits best.

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
    by_layer = ("removed", "z", "u")
    numbers = ("rho", "updates", "part")
    removed: dict[str, Tensor]
    z: dict[str, Tensor]
    u: dict[str, Tensor]
    when: ClassVar[str] = "the most accuracy at high sparsity, in any structure, when there is time to train"

    def __init__(
        self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: AdmmSettings
    ) -> None:
        super().__init__(model, rules, settings)
        self.rho = settings.rho
        self.updates = self.part = 0
        for target in self.targets:
            weight = self.weight(target).detach()
            self.z[target.name] = self._project(target, weight)
            self.u[target.name] = torch.zeros_like(weight)

    def penalty(self) -> Tensor:
        """``Σ ρ/2 ‖W − Z + U‖²`` over the layers; a scalar to add to the loss."""
        terms = []
        for target in self.targets:
            distance = self.weight(target) - self.z[target.name] + self.u[target.name]
            terms.append(distance.square().sum())
        if not terms:
            return torch.zeros(())
        return 0.5 * self.rho * torch.stack(terms).sum()

    def update(self) -> None:
        """``Z = Proj(W + U)``, then ``U += W − Z``, for each layer."""
        with torch.no_grad():
            for target in self.targets:
                weight, u = self.weight(target), self.u[target.name]
                self.z[target.name] = self._project(target, weight + u)
                u.add_(weight - self.z[target.name])
            self.updates += 1

    def set_rho(self, rho: float) -> None:
        """Change ρ and scale U so that ρU stays."""
        for u in self.u.values():
            u.mul_(self.rho / rho)
        self.rho = rho

    def after_step(self) -> None:
        """Weights that an earlier part removed stay at zero."""
        self.remove(self.removed)

    def after_epoch(self, epoch: int) -> str:
        """Update Z and U if it is time, and move ρ along its ramp; at a part's end, begin the next."""
        if epoch % self.settings.update_every == 0:
            self.update()
        if self.settings.part_at(epoch) != self.part:
            self._next_part()
        rho = self.settings.rho_at(epoch)
        if rho != self.rho and epoch < self.settings.epochs:
            self.set_rho(rho)
        return f"rho {self.rho:.1e} residual {self.residual():.3f}"

    def residual(self) -> float:
        """``‖W − Z‖ / ‖W‖`` over all layers: 0 when the weights have the structure."""
        with torch.no_grad():
            distance = total = 0.0
            for target in self.targets:
                weight = self.weight(target)
                distance += float((weight - self.z[target.name]).square().sum())
                total += float(weight.square().sum())
            return (distance / total) ** 0.5 if total > 0 else 0.0

    def finish(self) -> dict[str, Mask]:
        """The masks of the projection of the weights as they are now; with levels the weights are put on them."""
        masks, levels = self.masks_by(self.squares), self.settings.level_set()
        if levels is not None:
            with torch.no_grad():
                for target in self.targets:
                    kept = self.weight(target) * self.kept(target, masks[target.name])
                    self.weight(target).copy_(on_levels(kept, fitted_steps(kept, levels), levels))
        return masks

    def _next_part(self) -> None:
        """Remove what this part's density does not keep, and start the next with new duals."""
        for target in self.targets:
            if target.structure.fixed_density is None:
                self.removed[target.name] = ~self._keep(target, self.weight(target).detach())
        self.after_step()
        self.part += 1
        self.rho = self.settings.rho
        for target in self.targets:
            self.u[target.name].zero_()
            self.z[target.name] = self._project(target, self.weight(target).detach())

    def _project(self, target: Target, weight: Tensor) -> Tensor:
        kept, levels = weight * self._keep(target, weight), self.settings.level_set()
        return kept if levels is None else on_levels(kept, fitted_steps(kept, levels), levels)

    def _keep(self, target: Target, weight: Tensor) -> Tensor:
        density = self.settings.density_in(self.part, target)
        return self.kept(target, target.structure.mask(scores_of(weight, 2), density))
