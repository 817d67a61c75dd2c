"""Thresholds that follow the maps while a network is trained, so that a density is reached by construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.errors import StructureError
from sparseflow.train.activations.hooks import MapHook
from sparseflow.train.activations.modules import FATReLU

_SAMPLES = 16384  # elements from which a batch's quantile is taken
_MEMORY = 0.9  # of the running mean of quantiles


class DensityRamp(MapHook):
    """A hook of `Trainer` that moves the thresholds of `FATReLU` modules to where their maps have a wanted density.

    In training, each batch's (1 - density) quantile of what an activation receives enters a running mean, which is its
    threshold. The wanted density falls linearly from 1/2, that of a ReLU after batch norm, to ``density`` over the
    ramp, then stays; a map that is sparser keeps its threshold at 0.

    Parameters
    ----------
    activations : mapping of str to FATReLU
    density : float
        Aimed at in every map, in (0, 1).
    ramp : float
        Epochs until it is reached.

    Notes
    -----
    In a loop of one's own: call `begin_epoch` before each epoch, `after_step` after each step; `close` at the end.

    References
    ----------
    The thresholds of M. Kurtz et al., ICML 2020 (see `FATReLU`), moved during training instead of after it; the ramp as
    for weights in M. Zhu, S. Gupta, "To prune, or not to prune", arXiv 1710.01878, section 3.
    """

    START = 0.5

    def __init__(self, activations: Mapping[str, nn.Module], density: float, ramp: float) -> None:
        if not 0.0 < density < 1.0 or ramp < 0:
            raise StructureError(
                f"density ramp: found density {density}, ramp {ramp}; a density in (0, 1) and >= 0 epochs are allowed"
            )
        self._modules = [m for m in activations.values() if isinstance(m, FATReLU)]
        self.density, self.ramp = density, ramp
        self._wanted, self._epoch, self._step, self._steps = self.START, 0, 0, 1
        self.handles = [m.register_forward_pre_hook(self._see) for m in self._modules]

    def wanted(self, position: float) -> float:
        """The density aimed at after ``position`` epochs."""
        share = min(position / self.ramp, 1.0) if self.ramp > 0 else 1.0
        return self.START + (self.density - self.START) * share

    def _see(self, module: nn.Module, inputs: Any) -> None:
        if not module.training or not isinstance(module, FATReLU):
            return
        with torch.no_grad():
            threshold = quantile(inputs[0].detach(), 1.0 - self._wanted).clamp(min=0.0)
            module.threshold.lerp_(threshold.to(module.threshold), 1.0 - _MEMORY)

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Takes up the ramp at a whole epoch."""
        self._epoch, self._step, self._steps = epoch, 0, steps
        self._wanted = self.wanted(epoch)

    def after_step(self) -> None:
        """Moves along the ramp."""
        self._step += 1
        self._wanted = self.wanted(self._epoch + self._step / max(self._steps, 1))

    def after_epoch(self, epoch: int) -> str:
        """The density aimed at."""
        return f"density {self._wanted:.3f}"


def quantile(x: Tensor, q: float) -> Tensor:
    """The ``q`` quantile of the elements of ``x``, from at most 16,384 of them at even distances."""
    flat = x.flatten()
    stride = max(1, -(-flat.numel() // _SAMPLES)) | 1  # odd: it does not stay in one column of the map
    sample = flat[::stride].float()
    return sample.kthvalue(min(max(1, round(q * sample.numel())), sample.numel())).values
