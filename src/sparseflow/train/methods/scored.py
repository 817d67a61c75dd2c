"""What methods share that train and judge weights by a criterion."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import AfterValidator
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.train.criteria.base import Reads, Scores, readable
from sparseflow.train.methods.base import InTraining
from sparseflow.train.rules import Rule, Target, array_of

TrainedCriterion = Annotated[str, AfterValidator(readable(Reads.WEIGHTS, Reads.GRADIENTS, Reads.STEPS))]
"""A criterion's name in the settings of a method that trains."""


class _Settings(Protocol):
    epochs: int
    criterion: str


class ScoredTraining(InTraining):
    """Base of methods whose settings have a ``criterion``, which sees the gradients; it knows where the training is."""

    settings: _Settings

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.seen = Scores(self.settings.criterion)
        self.steps, self.step = 1, 0

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Take note of where the training is."""
        self.steps, self.step = steps, epoch * steps

    def before_step(self) -> None:
        """Show the gradients to the criterion."""
        for target in self.targets:
            self.seen.add_gradient(target.name, self.judged(target), self.weight(target).grad)

    def judged(self, target: Target) -> Tensor:
        """The weights that the criterion judges."""
        return self.weight(target)

    def scores(self, target: Target) -> Array:
        """The criterion's scores, shape of the weight."""
        return array_of(self.seen.so_far(target.name, self.judged(target)))

    def state_dict(self) -> dict[str, Any]:
        """The method's own state, and what the criterion has seen."""
        return super().state_dict() | {"seen": dict(self.seen.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        devices = {t.name: self.weight(t).device for t in self.targets}
        self.seen.sums = {name: sums.to(devices[name], copy=True) for name, sums in state["seen"].items()}
