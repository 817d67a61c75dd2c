"""The error that the removal of a weight causes in its layer's outputs: optimal brain surgeon."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.train.criteria.base import CRITERIA, Criterion, Reads

_DAMPING = 0.01
"""λ over the mean of the Hessian's diagonal, as SparseGPT has it."""


@dataclass(frozen=True)
class Curvature:
    """``H = XᵀX + λI`` of a layer's input rows X, and what is derived from it.

    Parameters
    ----------
    hessian : Tensor, shape (n, n)
        Positive definite.
    inverse : Tensor, shape (n, n)
    factor : Tensor, shape (n, n)
        Upper triangular U with ``inverse = Uᵀ U``; ``U[j:, j:]`` factors the inverse of H without its first j
        rows and columns.
    """

    hessian: Tensor
    inverse: Tensor
    factor: Tensor

    @classmethod
    def of(cls, gram: Tensor, damping: float) -> Curvature:
        """From ``XᵀX``, with ``λ = damping · mean(diag)``.

        References
        ----------
        E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, section 3.4 (damping, Cholesky factor).
        """
        mean = float(gram.diagonal().mean())
        hessian = gram.double() + (damping * mean if mean > 0 else 1.0) * torch.eye(
            len(gram), dtype=torch.float64, device=gram.device
        )
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return cls(hessian, inverse, torch.linalg.cholesky(inverse, upper=True))


def saliency(weight: Tensor, curvature: Curvature) -> Tensor:
    """``w² / [H⁻¹]_jj``: the error of removing each weight alone, the rest of its row adjusted at best.

    References
    ----------
    B. Hassibi, D. Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992,
    equation 5.
    """
    return weight.square() / curvature.inverse.diagonal()


@CRITERIA.register("second_order")
class SecondOrder(Criterion):
    """`saliency` from the layer's inputs; groups of a convolution have a Hessian each.

    References
    ----------
    B. Hassibi, D. Stork, NIPS 1992, equation 5; E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, section 3.
    """

    reads = Reads.INPUTS
    when = "one-shot, when inputs depend on each other; the method of this name also adjusts the weights that stay"

    def summand(self, weight: Tensor, seen: Tensor) -> Tensor:
        """``XᵀX``, shape (groups, in, in)."""
        return (seen.mT @ seen).double()

    def __call__(self, weight: Tensor, statistic: Tensor) -> Tensor:
        """Of type float64."""
        parts = weight.double().flatten(1).chunk(len(statistic))
        grams = zip(parts, statistic, strict=True)
        scores = [saliency(part, Curvature.of(gram, _DAMPING)) for part, gram in grams]
        return torch.cat(scores).reshape(weight.shape)
