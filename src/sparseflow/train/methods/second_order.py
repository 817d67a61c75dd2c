"""Second-order one-shot pruning with calibration data: optimal brain surgeon, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.arrays import Keep
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.errors import SparseflowError
from sparseflow.train.methods.base import METHODS, CalibrationSettings, Need, OneShot
from sparseflow.train.methods.least_squares import Curvature, eliminate, refit, saliency, sweep
from sparseflow.train.methods.observe import input_rows, observe, take
from sparseflow.train.methods.selection import channels_at_once, density_of, shared_columns, spans_columns
from sparseflow.train.rules import Rule, Target, scores_of, with_library


class SecondOrderSettings(CalibrationSettings):
    """How the layers' inputs are gathered and their weights adjusted.

    Parameters
    ----------
    positions : int
        Output positions of a convolution that are looked at in each batch, for each of its samples on
        average; all if there are fewer.
    layers_per_pass : int
        Layers that are pruned between two passes over the calibration data. 1: each layer sees its inputs as
        the pruned layers before it leave them.
    damping : float
        λ as a fraction of the mean of the Hessian's diagonal.
    block : int
        Columns that are selected together, and after which changes reach the rest of a layer.
    refit : int
        Iterations that move the kept weights to the least-squares solution on the final mask.
    """

    positions: int = Field(default=256, ge=1)
    layers_per_pass: int = Field(default=4, ge=1)
    damping: float = Field(default=0.01, gt=0)
    block: int = Field(default=128, ge=1)
    refit: int = Field(default=10, ge=0)


@METHODS.register("second_order")
class SecondOrder(OneShot):
    """Removes the weights whose loss changes a layer's outputs least, and adjusts those that stay.

    For each layer ``‖(Ŵ − W) X‖²`` over the calibration inputs X is made small, a convolution taken as the
    matrix product of its unfolded input. Units that hold whole columns (channel, column) are eliminated one
    after the other, which is exact for the mask that results. Other structures are chosen chunk by chunk of
    input channels in a sweep over the columns; how much each chunk keeps is decided beforehand. Whole rows
    (filter) are chosen by the energy of their output, for which nothing else in the layer can make up.

    References
    ----------
    B. Hassibi, D. Stork, NIPS 1992; E. Frantar, S. P. Singh, D. Alistarh, "Optimal brain compression",
    NeurIPS 2022; E. Frantar, D. Alistarh, "SparseGPT", ICML 2023. The density of a chunk follows the
    saliencies of the whole layer, where SparseGPT gives all chunks the same.
    """

    needs = Need.CALIBRATION
    Settings = SecondOrderSettings
    settings: SecondOrderSettings
    when = "no training: the most accuracy from a trained network and a few hundred unlabelled samples"

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.masks: dict[str, Mask] = {}

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Grouped convolutions have a Hessian for each group."""
        if getattr(layer, "groups", 1) > 1:
            return "a grouped convolution's filters do not share their inputs; use wanda or magnitude"
        return None

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Prune all layers, a few for each pass over the data; their weights are changed."""
        inputs = [x for x, _ in take(batches, self.settings.samples)]
        for start in range(0, len(self.targets), self.settings.layers_per_pass):
            part = self.targets[start : start + self.settings.layers_per_pass]
            grams = self.gather(part, inputs)
            for target in part:
                self._prune(target, grams.pop(target.name))

    def finish(self) -> dict[str, Mask]:
        """The masks that `calibrate` chose.

        Raises
        ------
        SparseflowError
            If there was no calibration.
        """
        if len(self.masks) != len(self.targets):
            raise SparseflowError("second_order: has seen no data; call calibrate(batches) first")
        return dict(self.masks)

    def gather(self, targets: tuple[Target, ...], inputs: list[Tensor]) -> dict[str, Tensor]:
        """``XᵀX`` of each layer's inputs X, divided by the number of rows; shape (in, in)."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        generator = torch.Generator().manual_seed(0)

        def add(name: str, layer: nn.Module, x: Tensor) -> None:
            rows = input_rows(layer, x)[0]
            most = self.settings.positions * len(x)
            if isinstance(layer, nn.modules.conv._ConvNd) and len(rows) > most:
                rows = rows[torch.randperm(len(rows), generator=generator)[:most].to(rows.device)]
            sums[name] = (rows.T @ rows).double() + sums.get(name, 0)
            counts[name] = len(rows) + counts.get(name, 0)

        observe(self.model, [t.name for t in targets], add, inputs)
        missing = [t.name for t in targets if t.name not in sums]
        if missing:
            raise SparseflowError(
                f"second_order: layer {missing[0]!r} is not used by the model's forward pass; leave it dense"
            )
        return {name: total / counts[name] for name, total in sums.items()}

    def _prune(self, target: Target, gram: Tensor) -> None:
        parameter = self.weight(target)
        shape = tuple(parameter.shape)
        weight = parameter.detach().double().flatten(1)
        curvature = Curvature.of(gram.to(weight.device), self.settings.damping)
        units = shared_columns(target.structure, shape)
        if units is not None:
            labels = torch.tensor(units, device=weight.device)
            count = int(units.max()) + 1
            remove = count - kept_units(target, shape)
            pruned, columns = eliminate(weight, curvature.inverse, labels, remove)
            keep = columns.expand_as(pruned)
            structure = target.structure
        else:
            pruned, keep, structure = self._sweep(target, shape, weight, curvature)
            pruned = refit(weight, pruned, keep, curvature.hessian, self.settings.refit)
        with torch.no_grad():
            parameter.copy_(pruned.reshape(shape))
        self.masks[target.name] = Mask(keep.cpu().numpy().reshape(shape), structure)

    def _sweep(
        self, target: Target, shape: tuple[int, ...], weight: Tensor, curvature: Curvature
    ) -> tuple[Tensor, Tensor, Structure]:
        first = saliency(weight, curvature)
        if spans_columns(target.structure, shape):
            energy = ((weight @ curvature.hessian) * weight).sum(1, keepdim=True)
            first = energy.clamp_min(0).expand_as(weight)
        scores = scores_of(first.reshape(shape), dtype=torch.float64)
        structure = with_library(target.structure, scores)
        keep = structure.mask(scores, target.density).keep
        channels = channels_at_once(structure, shape)
        positions = int(np.prod(shape[2:]))

        def select(now: Tensor, start: int, stop: int) -> Tensor:
            part = keep[:, start // positions : stop // positions]
            if channels is not None:
                part = _part_mask(structure, now, part, target.density)
            return torch.from_numpy(part.reshape(len(now), -1).copy()).to(now.device)

        if structure.fixed_density is None:
            chunk = (channels or 1) * max(self.settings.block // ((channels or 1) * positions), 1)
        else:  # the fewer are chosen at a time, the more the choice knows
            chunk = channels or 1
        pruned, kept = sweep(weight, curvature.factor, select, chunk * positions, self.settings.block)
        return pruned, kept, structure


def kept_units(target: Target, shape: tuple[int, ...]) -> int:
    """How many of the units that span all rows a target keeps."""
    units = shared_columns(target.structure, shape)
    keep = target.structure.mask(np.zeros(shape, dtype=np.float32), target.density).keep
    return len(np.unique(units[keep[0].reshape(-1)])) if units is not None else 0


def _part_mask(structure: Structure, now: Tensor, before: Keep, density: float) -> Keep:
    """The mask of a chunk of channels by the saliencies of now, with as many units as ``before`` keeps there."""
    scores = scores_of(now.reshape(before.shape), dtype=torch.float64)
    return structure.mask(scores, density_of(structure, before, density)).keep
