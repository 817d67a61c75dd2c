"""Activations that make sparse maps, and putting them in the place of a network's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from sparseflow.errors import StructureError

SMOOTH = (nn.GELU, nn.SiLU, nn.Hardswish)
"""Activations that are hardly ever zero; `sparsify_activations` replaces them only when asked to."""


class FATReLU(nn.Module):
    """``x`` where it is larger than the threshold, else 0.

    The threshold is a buffer, so that it is saved with the weights and exported as a constant, which the compiler
    fuses into the layer before it. At 0 it is a ReLU. Gradients pass where ``x`` does.

    Parameters
    ----------
    threshold : float
        Not negative.

    References
    ----------
    M. Kurtz et al., "Inducing and exploiting activation sparsity for fast neural network inference", ICML 2020,
    section 3.2 (forced-activation-threshold ReLU).
    """

    threshold: Tensor

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= threshold < math.inf:
            raise StructureError(f"FATReLU: found threshold {threshold}; a finite one >= 0 is allowed")
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same out."""
        return torch.where(x > self.threshold, x, 0.0)


class TopK(nn.Module):
    """Of each pixel's channels the ``keep`` largest positive ones; the others 0.

    Every map then has the same density in every pixel, whatever the input. It exports, but as a sort of the channels:
    no kernel has it as its epilogue. So it is for training towards sparse maps; for speed, put `FATReLU` with fitted
    thresholds in its place.

    Parameters
    ----------
    keep : float
        Fraction of the channels, in (0, 1]; at least one is kept.

    References
    ----------
    A. Makhzani, B. Frey, "k-sparse autoencoders", arXiv 1312.5663, section 2.1.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        if not 0.0 < keep <= 1.0:
            raise StructureError(f"TopK: found keep {keep}; a fraction in (0, 1] is allowed")
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, …) in and out."""
        count = max(1, round(self.keep * x.shape[1]))
        least = x.topk(count, dim=1).values[:, -1:]
        return torch.where((x >= least) & (x > 0), x, 0.0)


Activation = FATReLU | TopK


def sparsify_activations(
    model: nn.Module,
    make: Callable[[], nn.Module] = FATReLU,
    *,
    names: tuple[str, ...] = ("*",),
    relufy: bool = False,
) -> dict[str, Activation]:
    """Put ``make()`` in the place of each ReLU module, in place, and give all `FATReLU` and `TopK` modules by name.

    A ReLU that a model calls as a function is not found: make it a module. Modules that are used twice share their
    threshold. What is replaced already is left as it is, so a second call changes nothing.

    Parameters
    ----------
    model : nn.Module
    make : callable
        `FATReLU`, or for instance ``lambda: TopK(0.2)``.
    names : tuple of str
        Shell wildcards over the modules' names; the others are left alone.
    relufy : bool
        Replace GELU, SiLU and hard-swish too. The network has to be trained again afterwards.

    Raises
    ------
    StructureError
        If no module is found, or a pattern matches none.

    References
    ----------
    I. Mirzadeh et al., "ReLU strikes back: exploiting activation sparsity in large language models", arXiv 2310.04564,
    section 4 (relufication: replace, then fine-tune).
    """
    old = (nn.ReLU, nn.ReLU6, *SMOOTH) if relufy else (nn.ReLU, nn.ReLU6)
    modules = dict(model.named_modules())
    found = {n: m for n, m in modules.items() if isinstance(m, (*old, FATReLU, TopK))}
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in found):
            kinds = ", ".join(kind.__name__ for kind in old)
            known = ", ".join(found) or "(none)"
            raise StructureError(
                f"activations {pattern!r}: matches no module of {kinds}; found are {known}; "
                "a function such as torch.relu has to become a module first"
            )
    chosen = {n: m for n, m in found.items() if any(fnmatchcase(n, p) for p in names)}
    for name, module in chosen.items():
        if isinstance(module, old):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, make())
    return {n: m for n in chosen if isinstance(m := model.get_submodule(n), FATReLU | TopK)}
