"""Wanda: magnitude times the norm of the input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Unstructured
from sparseflow.errors import SparseflowError
from sparseflow.train.methods.base import METHODS, CalibrationSettings, Need, OneShot
from sparseflow.train.methods.observe import input_rows, observe, take
from sparseflow.train.rules import Rule, Target, scores_of


class WandaSettings(CalibrationSettings):
    """What is compared with what.

    Parameters
    ----------
    compare : {"row", "layer"}
        Single weights compete within their output, as in the paper, or within the layer. Other structures
        compete as they always do.
    """

    compare: Literal["row", "layer"] = "row"


@METHODS.register("wanda")
class Wanda(OneShot):
    """Keeps the units with the largest mean of ``|W_ij| · ‖X_j‖₂``; weights are left as they are.

    X_j is input j of the layer over all calibration samples: a feature for a linear layer; a channel at a
    kernel position, over all output positions, for a convolution.

    References
    ----------
    M. Sun et al., "A simple and effective pruning approach for large language models", ICLR 2024,
    section 3, equation 1.
    """

    needs = Need.CALIBRATION
    Settings = WandaSettings
    settings: WandaSettings
    when = "one-shot in seconds, when inputs differ much in scale"

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.squares: dict[str, Tensor] = {}

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Sum the squares of each layer's inputs."""

        def add(name: str, layer: nn.Module, x: Tensor) -> None:
            sums = input_rows(layer, x).double().square().sum(1)
            self.squares[name] = sums + self.squares.get(name, 0)

        names = [t.name for t in self.targets]
        observe(self.model, names, add, (x for x, _ in take(batches, self.settings.samples)))

    def finish(self) -> dict[str, Mask]:
        """The masks of the weights as they are now.

        Raises
        ------
        SparseflowError
            If there was no calibration.
        """
        return {t.name: t.structure.mask(self.scores(t), t.density) for t in self.targets}

    def scores(self, target: Target) -> Array:
        """``|W_ij| ‖X_j‖``, or its rank within the row where rows are compared apart; shape of the weight."""
        if target.name not in self.squares:
            raise SparseflowError(
                f"wanda: layer {target.name!r} has seen no data; call calibrate(batches) first"
            )
        weight = self.weight(target).detach()
        norms = self.squares[target.name].sqrt()  # (groups, in)
        rows = norms.repeat_interleave(weight.shape[0] // len(norms), 0)
        scores = weight.double().flatten(1).abs() * rows
        if self.settings.compare == "row" and isinstance(target.structure, Unstructured):
            below = scores.argsort(dim=1, stable=True).argsort(dim=1).double()
            scores = below + scores / (1 + scores.max())  # ranks, ties between rows by score
        return scores_of(scores.reshape(weight.shape), dtype=torch.float64)
