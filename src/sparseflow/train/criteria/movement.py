"""Movement: whether training moves a weight away from zero or towards it."""

from __future__ import annotations

from torch import Tensor

from sparseflow.train.criteria.base import CRITERIA, Criterion, Reads


@CRITERIA.register("movement")
class Movement(Criterion):
    """``−Σ g w`` over the steps of a training, above its lowest in the layer.

    The step size would scale all scores of a layer alike, so it changes no mask and is left out.

    References
    ----------
    V. Sanh, T. Wolf, A. M. Rush, "Movement pruning: adaptive sparsity by fine-tuning", NeurIPS 2020,
    section 3, table 1.
    """

    reads = Reads.STEPS
    when = "fine-tuning a pretrained network on a task of its own"

    def summand(self, weight: Tensor, seen: Tensor) -> Tensor:
        """``−g w``."""
        return -(seen * weight)

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """The sum, the layer's lowest at 0."""
        return statistic - statistic.min()
