"""Weights on levels with steps that are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.train.levels import Levels, by_filter, fitted_steps

TINY = 1e-12
"""Steps are at least so large."""


class _Scaled(torch.autograd.Function):
    """Its argument; the gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Any) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scaled_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor``."""
    made: Tensor = _Scaled.apply(x, factor)
    return made


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """``y`` in value, ``x`` in gradient; exact if ``y`` is 0 or within a factor of two of ``x``."""
    return x + (y - x).detach()


def positive(step: Tensor) -> Tensor:
    """A learned step as it is used: its sign does not count."""
    return step.abs().clamp_min(TINY)


def mean_steps(weight: Tensor, levels: Levels) -> Tensor:
    """``2 mean|w| / √Q`` of each filter over the weights that it keeps, (filters,); 1 for a filter of zeros."""
    flat = weight.detach().flatten(1)
    mean = flat.abs().sum(1) / flat.count_nonzero(1).clamp_min(1)
    return torch.where(mean > 0, 2 * mean / levels.largest**0.5, 1.0)


STARTS: dict[str, Callable[[Tensor, Levels], Tensor]] = {"fitted": fitted_steps, "mean": mean_steps}
"""Where the steps of weights start: with the least squared error, or by the paper's formula."""


class LearnedSteps(nn.Module):
    """A parametrisation: a weight on levels, with a learned step for each filter.

    With v = w/s, and Q the largest level: ``ŵ = s · nearest(clip(v, -Q, Q))``. The rounding counts as the identity in
    the gradient: ∂ŵ/∂w is 1 inside of ±Q and 0 outside, ∂ŵ/∂s is ``nearest(v) - v`` inside and ±Q outside, multiplied
    by ``1 / √(n Q)`` with n the weights that the filter keeps. Zero is a level, so what a mask holds at zero stays.

    Parameters
    ----------
    weight : Tensor (filters, *rest)
        As training finds it; its zeros are the pruned weights.
    levels : Levels
    start : str
        Of `STARTS`.
    norm : nn.BatchNorm, optional
        The batch norm that the weight will be folded into: levels are then those of ``w γ / √(σ² + ε)``, with the
        running variance.

    Attributes
    ----------
    step : nn.Parameter (filters,)
        One axis, so that no weight decay falls on it.

    References
    ----------
    S. Esser et al., "Learned step size quantization", ICLR 2020, arXiv 1902.08153, sections 2.1 and 2.2 (the step's
    gradient and its scale); here with a step for each filter. Folding: R. Krishnamoorthi, arXiv 1806.08342, section
    3.2.2.
    """

    keeps_zero = True
    """For `weight_of`: methods and masks may work on the weight before it."""

    def __init__(
        self, weight: Tensor, levels: Levels, start: str = "fitted", norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.levels = levels
        self._norm = (norm,)  # in a tuple: the batch norm stays where it is in the model
        folded = (weight * self._scale(weight)).detach()
        self.step = nn.Parameter(STARTS[start](folded, levels))
        kept = folded.flatten(1).count_nonzero(1).clamp_min(1)
        self.register_buffer("factor", (kept * levels.largest).to(weight.dtype).rsqrt())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its levels, same shape."""
        scale = self._scale(weight)
        step = by_filter(scaled_gradient(positive(self.step), self.factor), weight)
        v = (weight * scale / step).clamp(-self.levels.largest, self.levels.largest)
        return straight_through(v, self.levels.nearest(v)) * step / scale

    def _scale(self, weight: Tensor) -> Tensor | float:
        """What folding multiplies each filter by; 1 where that is 0."""
        (norm,) = self._norm
        if norm is None:
            return 1.0
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return by_filter(torch.where(scale.abs() > TINY, scale, 1.0), weight)
