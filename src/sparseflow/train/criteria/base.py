"""What a criterion is, the sums that it reads, and the registry of criteria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import ClassVar

from torch import Tensor

from sparseflow.errors import SparseflowError
from sparseflow.registry import Registry


class Reads(StrEnum):
    """What a criterion reads beside the weights; a method takes those criteria whose reading it can give."""

    WEIGHTS = "the weights alone"
    INPUTS = "inputs of the layer"
    GRADIENTS = "gradients"
    STEPS = "gradients while training"


class Criterion(ABC):
    """How much each single weight counts: a callable ``(weight, statistic) -> scores``.

    The statistic is the sum of `summand` over all that a method has seen. Structures take the means over their units
    themselves.

    Attributes
    ----------
    reads : Reads
    by_rows : bool
        Whether single weights, pruned in one shot, compete within their row instead of within the layer.
    when : str
        When to choose it; one sentence for the table in the documentation.
    """

    reads: ClassVar[Reads] = Reads.WEIGHTS
    by_rows: ClassVar[bool] = False
    when: ClassVar[str]

    def summand(self, weight: Tensor, seen: Tensor) -> Tensor:
        """What one batch adds to the statistic; asked only of criteria that read more than the weights.

        Parameters
        ----------
        weight : Tensor, shape (out, in, *kernel)
        seen : Tensor
            The gradient, of the weight's shape, or the layer's input rows, shape (groups, rows, in).
        """
        raise NotImplementedError(f"{type(self).__name__} reads {self.reads} and sums nothing")

    @abstractmethod
    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """Scores of at least 0, shape of the weight; the highest are kept."""


CRITERIA: Registry[type[Criterion]] = Registry("criterion", ("sparseflow.train.criteria",))


class Scores:
    """The scores of a model's layers by one criterion, with the sums that it reads.

    Parameters
    ----------
    name : str
        Of the criterion.
    """

    def __init__(self, name: str) -> None:
        self.name, self.criterion = name, CRITERIA[name]()
        self.sums: dict[str, Tensor] = {}

    def add(self, layer: str, weight: Tensor, seen: Tensor) -> None:
        """Take note of a batch's gradient or input rows."""
        self.sums[layer] = self.criterion.summand(weight.detach(), seen.detach()) + self.sums.get(layer, 0)

    def add_gradient(self, layer: str, weight: Tensor, gradient: Tensor | None) -> None:
        """Take note of a training step's gradient, if the criterion reads it."""
        if gradient is not None and self.criterion.reads in (Reads.GRADIENTS, Reads.STEPS):
            self.add(layer, weight, gradient)

    def of(self, layer: str, weight: Tensor) -> Tensor:
        """The scores of a layer's weights.

        Raises
        ------
        SparseflowError
            If the criterion has seen nothing of the layer.
        """
        if self.criterion.reads is not Reads.WEIGHTS and layer not in self.sums:
            raise SparseflowError(
                f"{self.name}: layer {layer!r} has seen no data; call calibrate(batches) first"
            )
        return self.criterion(weight.detach(), self.sums.get(layer, weight))

    def so_far(self, layer: str, weight: Tensor) -> Tensor:
        """The scores in a training; before the first gradient the magnitudes."""
        known = self.criterion.reads is Reads.WEIGHTS or layer in self.sums
        return self.of(layer, weight) if known else weight.detach().abs()


def readable(*reads: Reads) -> Callable[[str], str]:
    """A check of a setting ``criterion``: it is known, and reads one of ``reads``.

    Raises
    ------
    ValueError
    """

    def check(name: str) -> str:
        if name not in CRITERIA or CRITERIA[name].reads not in reads:
            reason = f"it reads {CRITERIA[name].reads}" if name in CRITERIA else "it is not known"
            raise ValueError(f"{reason}; criteria allowed here: {', '.join(criteria_of(reads))}")
        return name

    return check


def criteria_of(reads: Iterable[Reads]) -> list[str]:
    """The names of the criteria that read one of ``reads``, sorted."""
    allowed = set(reads)
    return sorted(name for name, criterion in CRITERIA.items() if criterion.reads in allowed)
