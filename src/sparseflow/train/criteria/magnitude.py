"""The magnitude of a weight."""

from __future__ import annotations

from torch import Tensor

from sparseflow.train.criteria.base import CRITERIA, Criterion


@CRITERIA.register("magnitude")
class Magnitude(Criterion):
    """``|w|``.

    References
    ----------
    S. Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015,
    section 3.
    """

    when = "a first look at speed, or moderate sparsity before a long retraining"

    def __call__(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        """``|w|``."""
        return weight.abs()
