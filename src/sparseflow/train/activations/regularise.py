"""Regularisers that lower the density of maps while a network is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.errors import StructureError
from sparseflow.registry import Registry
from sparseflow.train.activations.hooks import MapHook

REGULARISERS: Registry[Callable[[Tensor], Tensor]] = Registry("activation regulariser")
"""Functions of one map (batch, …), as float32: a scalar whose gradient draws activations to zero."""


@REGULARISERS.register("l1")
def l1(y: Tensor) -> Tensor:
    """The mean magnitude; it also shrinks what stays, as far as no normalisation follows.

    References
    ----------
    G. Georgiadis, "Accelerating convolutional neural networks via activation map compression", CVPR 2019, section 3.
    """
    return y.abs().mean()


@REGULARISERS.register("hoyer")
def hoyer(y: Tensor) -> Tensor:
    """``(Σ|y|)² / (n Σy²)`` of each sample's n elements, averaged over the batch.

    It does not change when the map is scaled, and by Cauchy and Schwarz it is at most the map's density, which it
    equals when all non-zeros are equal: so its sum is a smooth stand-in for the density itself.

    References
    ----------
    M. Kurtz et al., "Inducing and exploiting activation sparsity for fast neural network inference", ICML 2020,
    section 3.1; P. Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 2004.
    """
    flat = y.flatten(1)
    squares = flat.square().sum(1)
    return (flat.abs().sum(1).square() / (flat.shape[1] * squares + 1e-12)).mean()


class MapRegulariser(MapHook):
    """A hook of `Trainer` that adds ``strength · Σ share · regulariser(map)`` to each batch's loss.

    ``share`` is a map's part of all maps' elements (of one sample), so that strength 1 with ``hoyer`` weighs the mean
    density of the network against the loss.

    Parameters
    ----------
    activations : mapping of str to nn.Module
        The modules whose outputs are maps, as `sparsify_activations` gives them.
    kind : str
        Of `REGULARISERS`.
    strength : float
        Not negative.

    Notes
    -----
    In a loop of one's own: run the model in training mode, then add `penalty` to the loss. It needs one forward pass
    in training mode between two calls of `penalty`; `close` takes it off the model.
    """

    def __init__(self, activations: Mapping[str, nn.Module], kind: str, strength: float) -> None:
        if strength < 0.0:
            raise StructureError(f"map regulariser: found strength {strength}; >= 0 is allowed")
        self.kind, self.strength = kind, strength
        self._measure = REGULARISERS[kind]
        self._terms: list[tuple[int, Tensor]] = []
        self.handles = [m.register_forward_hook(self._see) for m in activations.values()]
        self._last, self._steps = 0.0, 0

    def _see(self, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            self._terms.append((output[0].numel(), self._measure(output.float())))

    def penalty(self) -> Tensor | None:
        """What to add to the loss of the batch that was just run; None if none was."""
        terms, self._terms = self._terms, []
        elements = sum(size for size, _ in terms)
        if not elements:
            return None
        mean = torch.stack([term * (size / elements) for size, term in terms]).sum()
        self._last += float(mean.detach())
        self._steps += 1
        return self.strength * mean

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Starts the epoch's mean."""
        self._last, self._steps = 0.0, 0

    def after_epoch(self, epoch: int) -> str:
        """The epoch's mean of the regulariser."""
        return f"{self.kind} {self._last / max(self._steps, 1):.4f}"
