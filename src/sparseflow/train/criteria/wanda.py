"""Magnitude times the norm of the input."""

from __future__ import annotations

from torch import Tensor

from sparseflow.train.criteria.base import CRITERIA, Criterion, Reads


@CRITERIA.register("wanda")
class Wanda(Criterion):
    """``|W_ij| · ‖X_j‖₂``.

    X_j is input j of the layer over all calibration samples: a feature for a linear layer; a channel at a
    kernel position, over all output positions, for a convolution.

    References
    ----------
    M. Sun et al., "A simple and effective pruning approach for large language models", ICLR 2024,
    section 3, equation 1.
    """

    reads = Reads.INPUTS
    by_rows = True
    when = "one-shot in seconds, when inputs differ much in scale"

    def summand(self, weight: Tensor, seen: Tensor) -> Tensor:
        """``‖X_j‖²``, shape (groups, in)."""
        return seen.double().square().sum(1)

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """Of type float64."""
        norms = statistic.sqrt().repeat_interleave(weight.shape[0] // len(statistic), 0)
        return (weight.double().flatten(1).abs() * norms).reshape(weight.shape)
