"""First-order Taylor importance."""

from __future__ import annotations

from torch import Tensor

from sparseflow.train.criteria.base import CRITERIA, Criterion, Reads


@CRITERIA.register("taylor")
class Taylor(Criterion):
    """``Σ (g w)²`` over batches: the first-order estimate of the squared change of the loss when w is removed.

    References
    ----------
    P. Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, section 3,
    equations 7 and 8.
    """

    reads = Reads.GRADIENTS
    when = "filters and channels, before a retraining; needs labelled data"

    def summand(self, weight: Tensor, seen: Tensor) -> Tensor:
        """``(g w)²``."""
        return (seen * weight).square()

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The sum."""
        return statistic
