"""Second-order one-shot pruning with calibration data: optimal brain surgeon, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from sparseflow.core.arrays import Array, Keep
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure
from sparseflow.errors import SparseflowError
from sparseflow.train.criteria.base import Reads, Scores, readable
from sparseflow.train.criteria.second_order import Curvature, saliency
from sparseflow.train.methods.base import METHODS, CalibrationSettings, Need, OneShot
from sparseflow.train.methods.least_squares import aim, eliminate, refit, sweep
from sparseflow.train.methods.observe import input_rows, observing, take
from sparseflow.train.methods.selection import channels_at_once, density_of, shared_columns, spans_columns
from sparseflow.train.rules import Rule, Target, array_of, scores_of, with_library


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
    against_dense : bool
        Whether a layer is to give what it gives in the dense network, from the inputs that the pruned layers
        before it leave: it then makes up for their errors too. Otherwise it is to give what it would give
        from the same inputs. Costs a pass of the dense network beside each of the pruned one.
    ridge : float
        With ``against_dense``: what holds a layer's aim to its weights, as a fraction of the mean of the
        Hessian's diagonal.
    criterion : str
        What is removed: by its own one a weight is judged as it is when its turn comes; by any other all weights
        are judged once, before the first is removed.
    """

    positions: int = Field(default=256, ge=1)
    layers_per_pass: int = Field(default=4, ge=1)
    damping: float = Field(default=0.01, gt=0)
    block: int = Field(default=128, ge=1)
    refit: int = Field(default=10, ge=0)
    against_dense: bool = False
    ridge: float = Field(default=0.05, gt=0)
    criterion: Annotated[str, AfterValidator(readable(Reads.WEIGHTS, Reads.INPUTS))] = "second_order"


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input rows X.

    Parameters
    ----------
    gram : Tensor, shape (in, in)
        ``XᵀX`` over the number of rows.
    cross : Tensor, shape (in, in), or None
        ``X₀ᵀX`` over the number of rows, X₀ being the same rows in the dense network.
    """

    gram: Tensor
    cross: Tensor | None = None


@METHODS.register("second_order")
class SecondOrder(OneShot):
    """Removes the weights whose loss changes a layer's outputs least, and adjusts those that stay.

    For each layer ``‖(Ŵ − W) X‖²`` over the calibration inputs X is made small, a convolution taken as the
    matrix product of its unfolded input; with ``against_dense`` W is first moved towards what makes up for the
    errors of the layers before. Units that hold whole columns (channel, column) are eliminated one
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
        self.other: Scores | None = None
        if self.settings.criterion != "second_order":
            self.other = Scores(self.settings.criterion)

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Grouped convolutions have a Hessian for each group."""
        if getattr(layer, "groups", 1) > 1:
            return "a grouped convolution's filters do not share their inputs; use one_shot"
        return None

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Prune all layers, a few for each pass over the data; their weights are changed."""
        inputs = [x for x, _ in take(batches, self.settings.samples)]
        dense = deepcopy(self.model) if self.settings.against_dense else None
        for start in range(0, len(self.targets), self.settings.layers_per_pass):
            part = self.targets[start : start + self.settings.layers_per_pass]
            moments = self.gather(part, inputs, dense)
            for target in part:
                self._prune(target, moments.pop(target.name))

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

    def gather(
        self, targets: tuple[Target, ...], inputs: list[Tensor], dense: nn.Module | None = None
    ) -> dict[str, Moments]:
        """The moments of each layer's inputs, with the cross moments if the dense network is given."""
        names = [t.name for t in targets]
        grams: dict[str, Tensor] = {}
        crosses: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        generator = torch.Generator().manual_seed(0)
        unpruned: dict[str, list[Tensor]] = {name: [] for name in names}

        def remember(name: str, layer: nn.Module, x: Tensor) -> None:
            unpruned[name].append(x)

        def add(name: str, layer: nn.Module, x: Tensor) -> None:
            rows = input_rows(layer, x)[0]
            most, chosen = self.settings.positions * len(x), slice(None)
            if isinstance(layer, nn.modules.conv._ConvNd) and len(rows) > most:
                chosen = torch.randperm(len(rows), generator=generator)[:most].to(rows.device)
            rows = rows[chosen]
            grams[name] = (rows.T @ rows).double() + grams.get(name, 0)
            if dense is not None:
                before = input_rows(layer, unpruned[name].pop(0))[0][chosen]
                crosses[name] = (before.T @ rows).double() + crosses.get(name, 0)
            if self.other is not None and self.other.criterion.reads is Reads.INPUTS:
                self.other.add(name, layer.weight, rows[None])
            counts[name] = len(rows) + counts.get(name, 0)

        runs = [observing(self.model, names, add, inputs)]
        if dense is not None:
            runs.insert(0, observing(dense, names, remember, inputs))
        for _ in zip(*runs, strict=True):  # batch by batch, so that little is remembered
            for left_over in unpruned.values():
                left_over.clear()
        missing = [name for name in names if name not in grams]
        if missing:
            raise SparseflowError(
                f"second_order: layer {missing[0]!r} is not used by the model's forward pass; leave it dense"
            )
        return {
            name: Moments(gram / counts[name], crosses[name] / counts[name] if crosses else None)
            for name, gram in grams.items()
        }

    def _prune(self, target: Target, moments: Moments) -> None:
        parameter = self.weight(target)
        shape = tuple(parameter.shape)
        weight = parameter.detach().double().flatten(1)
        gram = moments.gram.to(weight.device)
        if moments.cross is not None:
            weight = aim(weight, gram, moments.cross.to(weight.device), self.settings.ridge)
        curvature = Curvature.of(gram, self.settings.damping)
        units = shared_columns(target.structure, shape)
        if units is not None and self.other is None:
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
        scores = self._first_scores(target, shape, weight, curvature)
        structure = with_library(target.structure, scores)
        keep = structure.mask(scores, target.density).keep
        channels = channels_at_once(structure, shape) if self.other is None else None
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

    def _first_scores(
        self, target: Target, shape: tuple[int, ...], weight: Tensor, curvature: Curvature
    ) -> Array:
        if self.other is not None:
            return array_of(self.other.of(target.name, weight.reshape(shape)))
        if not spans_columns(target.structure, shape):
            return array_of(saliency(weight, curvature).reshape(shape))
        energy = ((weight @ curvature.hessian) * weight).sum(1, keepdim=True)
        return array_of(energy.clamp_min(0).expand_as(weight).reshape(shape))


def kept_units(target: Target, shape: tuple[int, ...]) -> int:
    """How many of the units that span all rows a target keeps."""
    units = shared_columns(target.structure, shape)
    keep = target.structure.mask(np.zeros(shape, dtype=np.float32), target.density).keep
    return len(np.unique(units[keep[0].reshape(-1)])) if units is not None else 0


def _part_mask(structure: Structure, now: Tensor, before: Keep, density: float) -> Keep:
    """The mask of a chunk of channels by the saliencies of now, with as many units as ``before`` keeps there."""
    scores = scores_of(now.reshape(before.shape), dtype=torch.float64)
    return structure.mask(scores, density_of(structure, before, density)).keep
