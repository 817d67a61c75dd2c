"""Removing weights of a layer so that its outputs change least: the algebra of second-order pruning.

A layer's weights are W (rows, n), its inputs X (samples, n), and ``H = XᵀX + λI``. Everything here lowers
``tr((Ŵ − W) H (Ŵ − W)ᵀ)`` over the Ŵ that are zero where they have to be. All tensors are float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 64
"""In how many rounds at most `eliminate` removes units; within a round their order is not refined."""


def error(weight: Tensor, pruned: Tensor, hessian: Tensor) -> float:
    """``tr((Ŵ − W) H (Ŵ − W)ᵀ)``."""
    change = pruned - weight
    return float(((change @ hessian) * change).sum())


def aim(weight: Tensor, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The weights whose outputs from inputs X come closest to those of ``weight`` from inputs X₀.

    They are the V that minimise ``‖X Vᵀ − X₀ Wᵀ‖² + λ ‖V − W‖²``, so ``V = W (X₀ᵀX + λI) (XᵀX + λI)⁻¹``.

    Parameters
    ----------
    weight : Tensor, shape (rows, n)
        W.
    gram : Tensor, shape (n, n)
        ``XᵀX``.
    cross : Tensor, shape (n, n)
        ``X₀ᵀX``.
    ridge : float
        λ over the mean of the diagonal of ``XᵀX``.

    References
    ----------
    J. Zhang, Y. Zhou, R. Saab, "Post-training quantization for neural networks with provable guarantees",
    SIAM J. Math. Data Sci. 2023, section 2 (a layer's error is measured against the unchanged network).
    """
    strength = ridge * float(gram.diagonal().mean()) or 1.0
    damped = strength * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky(gram.double() + damped)
    return torch.cholesky_solve((weight @ (cross.double() + damped)).T, factor).T


def sweep(
    weight: Tensor,
    factor: Tensor,
    select: Callable[[Tensor, int, int], Tensor],
    chunk: int,
    lazy: int,
) -> tuple[Tensor, Tensor]:
    """Weights and mask after one pass over the columns, each removal made up for by the columns after it.

    Parameters
    ----------
    weight : Tensor, shape (rows, n)
    factor : Tensor, shape (n, n)
        `Curvature.factor`.
    select : callable
        ``select(saliency, first, last)``: what to keep of the columns from first to last, given
        ``w² / U_jj²`` of the weights as they are by then, shape (rows, last − first).
    chunk : int
        Columns that are selected together.
    lazy : int
        Columns after which the changes reach the rest of the matrix, as one product.

    Returns
    -------
    pruned : Tensor, shape (rows, n)
    keep : Tensor of bool, shape (rows, n)

    References
    ----------
    E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, section 3.3, algorithm 1.
    """
    pruned, n = weight.clone(), weight.shape[1]
    keep = torch.ones_like(weight, dtype=torch.bool)
    block = max(lazy // chunk, 1) * chunk
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.zeros_like(weight[:, start:stop])
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            now = (pruned[:, first:last] / factor.diagonal()[first:last]).square()
            keep[:, first:last] = select(now, first, last)
            for j in range(first, last):
                step = torch.where(keep[:, j], 0.0, pruned[:, j]) / factor[j, j]
                pruned[:, j:stop] -= step[:, None] * factor[j, j:stop]
                errors[:, j - start] = step
        pruned[:, stop:] -= errors @ factor[start:stop, stop:]
    return pruned * keep, keep


def eliminate(weight: Tensor, inverse: Tensor, units: Tensor, remove: int) -> tuple[Tensor, Tensor]:
    """Weights and mask after removing whole sets of columns, the cheapest first; exact for that mask.

    The error of removing the set S is ``Σ_rows w_S [H⁻¹]_SS⁻¹ w_Sᵀ``, and ``−w_S [H⁻¹]_SS⁻¹ [H⁻¹]_S:`` makes
    up for it; both are exact, so the result is the least-squares solution without the removed columns.

    Parameters
    ----------
    weight : Tensor, shape (rows, n)
    inverse : Tensor, shape (n, n)
        Of the Hessian.
    units : Tensor of int64, shape (n,)
        Which set each column is in, 0 to count − 1.
    remove : int
        How many sets to remove.

    Returns
    -------
    pruned : Tensor, shape (rows, n)
    keep : Tensor of bool, shape (n,)

    References
    ----------
    E. Frantar, S. P. Singh, D. Alistarh, "Optimal brain compression", NeurIPS 2022, section 4, equations 3
    and 5 (groups of weights).
    """
    pruned, inverse = weight.clone(), inverse.clone()
    keep = torch.ones(len(units), dtype=torch.bool, device=weight.device)
    members = [torch.nonzero(units == u).flatten() for u in range(int(units.max()) + 1)]
    alive = torch.ones(len(members), dtype=torch.bool, device=weight.device)
    at_once = max(-(-remove // _ROUNDS), 1)
    while remove > 0:
        scores = torch.where(alive, _unit_errors(pruned, inverse, members, alive), torch.inf)
        chosen = scores.argsort(stable=True)[: min(at_once, remove)]
        columns = torch.cat([members[u] for u in chosen.tolist()])
        solved = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])
        pruned -= pruned[:, columns] @ solved
        inverse -= inverse[:, columns] @ solved
        keep[columns], alive[chosen] = False, False
        remove -= len(chosen)
    return pruned * keep, keep


def _unit_errors(weight: Tensor, inverse: Tensor, members: list[Tensor], alive: Tensor) -> Tensor:
    scores = torch.zeros(len(members), dtype=weight.dtype, device=weight.device)
    living = [u for u in range(len(members)) if alive[u]]
    for size in sorted({len(members[u]) for u in living}):
        group = [u for u in living if len(members[u]) == size]
        columns = torch.stack([members[u] for u in group])  # (count, size)
        blocks = inverse[columns[:, :, None], columns[:, None, :]]
        parts = weight[:, columns].permute(1, 2, 0)  # (count, size, rows)
        scores[group] = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
    return scores


def refit(weight: Tensor, pruned: Tensor, keep: Tensor, hessian: Tensor, iterations: int) -> Tensor:
    """``pruned`` moved towards the least-squares solution on its mask, by conjugate gradients in all rows at once.

    Parameters
    ----------
    weight, pruned : Tensor, shape (rows, n)
        The dense weights, and where to start.
    keep : Tensor of bool, shape (rows, n)
    hessian : Tensor, shape (n, n)
    iterations : int
        n of them reach the solution up to rounding; 10 to 20 come close.

    References
    ----------
    X. Meng et al., "ALPS: improved optimization for highly sparse one-shot pruning for large language
    models", NeurIPS 2024, section 3.3 (conjugate gradients on a fixed support, Jacobi preconditioner).
    """
    result, scale = pruned.clone(), 1 / hessian.diagonal()
    residual = ((weight - result) @ hessian) * keep
    scaled = residual * scale
    direction, old = scaled.clone(), (residual * scaled).sum(1, keepdim=True)
    for _ in range(iterations):
        image = (direction @ hessian) * keep
        length = _divide(old, (direction * image).sum(1, keepdim=True))
        result += length * direction
        residual -= length * image
        scaled = residual * scale
        new = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + _divide(new, old) * direction
        old = new
    return result


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, 0 where a row has converged."""
    return torch.where(b > torch.finfo(b.dtype).tiny, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)
