"""What an activation is, and the registry of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.registry import Registry

Expr = Any  # an expression of whoever generates code; it has Python's arithmetic and comparisons


class Vectors(Protocol):
    """The operations beside arithmetic and comparisons of which vector code is made."""

    def number(self, value: float) -> Expr:
        """A vector of equal elements."""

    def at_least(self, x: Expr, low: Expr) -> Expr:
        """max(x, low), NaN where ``x`` is NaN."""

    def at_most(self, x: Expr, high: Expr) -> Expr:
        """min(x, high), NaN where ``x`` is NaN."""

    def larger(self, a: Expr, b: Expr) -> Expr:
        """The larger of two; either where one of them is NaN."""

    def smaller(self, a: Expr, b: Expr) -> Expr:
        """The smaller of two; either where one of them is NaN."""

    def where(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        """``a`` where the condition holds, else ``b``."""

    def exp(self, x: Expr) -> Expr:
        """e**x, 0 and infinity at the ends, any number where ``x`` is NaN."""

    def once(self, value: Expr) -> Expr:
        """``value`` in a variable, for use in more than one place."""


class Activation(ABC):
    """A function of single elements.

    Attributes
    ----------
    name : str
        The name in the registry, and in `Workload.activation` where a layer computes it.
    forms : tuple of str
        How Relax writes it after import, as expressions of ``x``, numbers, ``t`` (the parameter), Python's arithmetic
        and comparisons, and Relax operators without ``relax.`` with their attributes as keywords. Factors and terms
        may come in any order, and divisions by a number as products.
    replaced : tuple of str
        Forms in place of which importing puts the first of `forms`, which is one operator.
    torch : tuple of str
        Its operators in ``torch.ops.aten``, in-place forms left out.
    whole : bool
        Whether torch's decomposition is kept from writing it as several operators.
    monotone : bool
        Whether it never falls, so that the largest of a window stays the largest.
    non_negative : bool
        Whether no result is negative; with ``keeps_zero`` the activations that make maps sparse.
    clamps : bool
        Whether it only bounds its operand: storing the result in levels between its bounds is then all there is to do.
    has_parameter : bool
        Whether it takes the number ``t``.
    """

    name: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ()
    replaced: ClassVar[tuple[str, ...]] = ()
    torch: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False
    monotone: ClassVar[bool] = False
    non_negative: ClassVar[bool] = False
    clamps: ClassVar[bool] = False
    has_parameter: ClassVar[bool] = False

    @abstractmethod
    def numpy(self, x: Array, t: float) -> Array:
        """What it means, in float64."""

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        """Its code on float32 vectors, at the end of a layer's kernel; without it, it stays an operator of its own."""
        raise NotImplementedError(f"activation {self.name!r} has no vector code")

    def allows(self, t: float) -> bool:
        """Whether the parameter is one for which `forms` mean this activation."""
        return True

    @property
    def fused(self) -> bool:
        """Whether it has vector code."""
        return type(self).vector is not Activation.vector

    def keeps_zero(self, t: float = 0.0) -> bool:
        """Whether zeros stay zeros."""
        return bool(self.numpy(np.zeros(()), t) == 0.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


ACTIVATIONS: Registry[Activation] = Registry("activation", ("sparseflow.core.activations",))


def register(activation: type[Activation]) -> type[Activation]:
    """A class decorator that puts an instance of the activation into `ACTIVATIONS`."""
    ACTIVATIONS.register(activation.name)(activation())
    return activation


def fused() -> dict[str, Activation]:
    """Those that layers can compute at their end."""
    return {name: a for name, a in ACTIVATIONS.items() if a.fused}


def keeping_zero(kept: bool) -> list[str]:
    """torch operators of the activations that make zeros of zeros, or of those that do not."""
    return [op for a in ACTIVATIONS.values() if a.keeps_zero() == kept for op in a.torch]
