"""How much the loss rises when a layer is pruned: estimated from gradients, or measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sparseflow.core.structures import Structure
from sparseflow.registry import Registry
from sparseflow.train.allocation.base import Assigned, Problem, Strategy
from sparseflow.train.allocation.knapsack import Budget, solve
from sparseflow.train.methods.observe import take
from sparseflow.train.rules import scores_of, weight_of
from sparseflow.train.trainer import device_of, evaluating

CHUNK = 16
"""Samples whose mean gradient is one sample of the Fisher information."""


class LossIncrease(ABC):
    """The rise of the loss by pruning one layer alone, its smallest magnitudes removed.

    Parameters
    ----------
    problem : Problem
    samples : int
        How many samples of the loader are looked at.
    """

    def __init__(self, problem: Problem, samples: int) -> None:
        self.model, self.samples = problem.model, samples
        device = device_of(self.model)
        self.batches = [(x.to(device), y.to(device)) for x, y in take(problem.loader, samples)]

    @abstractmethod
    def of(self, name: str, structure: Structure, density: float) -> float:
        """The expected rise for one layer; at least 0."""

    def removed(self, name: str, structure: Structure, density: float) -> Tensor:
        """bool, shape of the weight: what the pruning removes."""
        weight = weight_of(self.model, name)
        mask = structure.mask(scores_of(weight), density)
        return torch.from_numpy(~mask.keep).to(weight.device)


ESTIMATES: Registry[type[LossIncrease]] = Registry("estimate of the loss increase")


@ESTIMATES.register("second-order")
class SecondOrder(LossIncrease):
    """``½ Σ F w²`` over the removed weights, with the diagonal F of the empirical Fisher information.

    References
    ----------
    L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787, section 2.1,
    equations 5 to 7.
    """

    def __init__(self, problem: Problem, samples: int) -> None:
        super().__init__(problem, samples)
        names = [slot.name for slot in problem.slots]
        weights = [weight_of(self.model, name) for name in names]
        fisher = [torch.zeros_like(w) for w in weights]
        count = 0
        with evaluating(self.model):
            for x, labels in self.batches:
                for part, wanted in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):
                    loss = F.cross_entropy(self.model(part), wanted)
                    for total, gradient in zip(fisher, torch.autograd.grad(loss, weights), strict=True):
                        total.add_(gradient.detach().square(), alpha=float(len(part)))
                    count += 1
        self._importance = {
            name: 0.5 * total / count * w.detach().square()
            for name, total, w in zip(names, fisher, weights, strict=True)
        }

    def of(self, name: str, structure: Structure, density: float) -> float:
        """See `LossIncrease`."""
        return float(self._importance[name][self.removed(name, structure, density)].sum())


@ESTIMATES.register("measured")
class Measured(LossIncrease):
    """The mean loss with the layer pruned, less the mean loss of the dense model; 0 where it falls.

    References
    ----------
    S. Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015, section 3.1
    (sensitivity of single layers).
    """

    def __init__(self, problem: Problem, samples: int) -> None:
        super().__init__(problem, samples)
        self._dense = self._loss()

    def of(self, name: str, structure: Structure, density: float) -> float:
        """See `LossIncrease`."""
        weight, removed = weight_of(self.model, name), self.removed(name, structure, density)
        with torch.no_grad():
            before = weight.clone()
            try:
                weight.masked_fill_(removed, 0.0)
                return max(0.0, self._loss() - self._dense)
            finally:
                weight.copy_(before)

    def _loss(self) -> float:
        total = count = 0.0
        with torch.no_grad(), evaluating(self.model):
            for x, labels in self.batches:
                total += float(F.cross_entropy(self.model(x), labels, reduction="sum"))
                count += len(labels)
        return total / count


class Estimated(Strategy):
    """A strategy that weighs loss increases.

    Attributes
    ----------
    estimate : str
        ``measured`` prunes each layer alone and looks at the loss, ``second-order`` uses gradients.
    samples : int
        How many training samples are looked at.
    """

    estimate: Literal["measured", "second-order"] = "measured"
    samples: int = Field(default=512, ge=1)

    def increase(self, problem: Problem) -> LossIncrease:
        """The estimate that was asked for."""
        return ESTIMATES[self.estimate](problem, self.samples)

    @staticmethod
    def least(options: list[list[Assigned]], budgets: Sequence[Budget]) -> tuple[Assigned, ...]:
        """One of each layer's options: the least loss increases, added up, within the budgets."""
        chosen = solve([[o.loss or 0.0 for o in found] for found in options], budgets)
        return tuple(found[i] for found, i in zip(options, chosen, strict=True))
