"""The levels that a quantised weight may have: whole numbers times a step of its filter, zero among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseflow.errors import ElementTypeError
from sparseflow.registry import Registry
from sparseflow.train.settings import told_in_validation

SHARES = torch.linspace(1.0, 0.2, 33).tolist()
"""Of a filter's largest magnitude: where `fitted_steps` tries to put the largest level. 1 has to be the first."""

LEVELS: Registry[type[Levels]] = Registry("levels")


@dataclass(frozen=True)
class Levels(ABC):
    """A set of whole numbers that holds -x with each x, and 0; as int8 it is exact.

    Parameters
    ----------
    bits : int
        Of one code.

    Raises
    ------
    ElementTypeError
        If the set has no codes of so many bits.
    """

    allowed: ClassVar[tuple[int, ...]]
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in self.allowed:
            known = ", ".join(map(str, self.allowed))
            raise ElementTypeError(f"{type(self).__name__}: found {self.bits} bits; {known} are allowed")

    @property
    @abstractmethod
    def magnitudes(self) -> tuple[int, ...]:
        """The levels that are not negative, ascending."""

    @property
    def largest(self) -> int:
        """The largest level."""
        return self.magnitudes[-1]

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The nearest level to each number, shape of ``x``."""


@LEVELS.register("uniform")
@dataclass(frozen=True)
class Uniform(Levels):
    """``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``: at 8 bits the 255 numbers of a symmetric int8."""

    allowed = tuple(range(2, 9))

    @property
    def magnitudes(self) -> tuple[int, ...]:
        """See `Levels`."""
        return tuple(range(2 ** (self.bits - 1)))

    def nearest(self, x: Tensor) -> Tensor:
        """See `Levels`; ties to even."""
        return x.clamp(-self.largest, self.largest).round()


@LEVELS.register("two-powers")
@dataclass(frozen=True)
class TwoPowers(Levels):
    """0 and ± sums of at most two powers of two.

    At 4 bits the paper's set, in units of its smallest level: a term of {0, 1, 4, 8} and one of {0, 2}. At 6 bits all
    sums of two different ones of {1, 2, 4, … 64}, which with the single ones and zero are 57 of the 64 codes.

    References
    ----------
    Y. Li et al., "Additive powers-of-two quantization: an efficient non-uniform discretization for neural networks",
    ICLR 2020, arXiv 1909.13144, section 2.2; the split of 3 bits of magnitude into terms is that of its code.
    """

    allowed = (4, 6)

    @property
    def magnitudes(self) -> tuple[int, ...]:
        """See `Levels`."""
        if self.bits == 4:
            return tuple(sorted(a + b for a in (0, 1, 4, 8) for b in (0, 2)))
        powers = [2**i for i in range(7)]
        return tuple(sorted({0, *powers, *(a + b for a in powers for b in powers if a < b)}))

    def nearest(self, x: Tensor) -> Tensor:
        """See `Levels`; ties to the smaller magnitude."""
        table = torch.tensor(self.magnitudes, dtype=x.dtype, device=x.device)
        between = (table[1:] + table[:-1]) / 2
        return table[torch.bucketize(x.abs().contiguous(), between)] * x.sign()


def known_levels(name: str) -> str:
    """``name``, for settings.

    Raises
    ------
    ValueError
        If no levels have it.
    """
    with told_in_validation():
        LEVELS[name]
    return name


def by_filter(values: Tensor, weight: Tensor) -> Tensor:
    """One number a filter, shaped (filters, 1, …) to go with a weight (filters, *rest)."""
    return values.reshape(-1, *(1,) * (weight.ndim - 1))


def fitted_steps(weight: Tensor, levels: Levels) -> Tensor:
    """The step of each filter with the least squared error of `on_levels`, of those that `SHARES` names.

    The largest weight of a filter is then on the largest level or past it. So weights that `on_levels` has put on
    levels with such steps get the same steps again.

    Parameters
    ----------
    weight : Tensor (filters, *rest)
    levels : Levels

    Returns
    -------
    Tensor, shape (filters,)
        Positive; a filter of zeros has the step 1.
    """
    with torch.no_grad():
        most = weight.abs().flatten(1).amax(1)
        whole = torch.where(most > 0, most / levels.largest, 1.0)
        best, least = whole.clone(), torch.full_like(whole, torch.inf)
        for share in SHARES:
            steps = whole * share
            error = (on_levels(weight, steps, levels) - weight).square().flatten(1).sum(1)
            better = error < least
            best[better], least[better] = steps[better], error[better]
        return torch.where(most > 0, best, 1.0)


def on_levels(weight: Tensor, steps: Tensor, levels: Levels) -> Tensor:
    """``weight`` (filters, *rest), each filter on the nearest multiples of its step that are levels; zeros stay."""
    step = by_filter(steps, weight)
    return levels.nearest(weight / step) * step
