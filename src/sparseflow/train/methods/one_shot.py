"""One-shot pruning by any criterion that calibration data can give."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Unstructured
from sparseflow.errors import DataError
from sparseflow.train.criteria.base import Reads, Scores, criteria_of, readable
from sparseflow.train.methods.base import METHODS, CalibrationSettings, Method, Need, OneShot
from sparseflow.train.methods.observe import input_rows, observing, take
from sparseflow.train.rules import Rule, Target, array_of
from sparseflow.train.trainer import evaluating

CALIBRATED = (Reads.WEIGHTS, Reads.INPUTS, Reads.GRADIENTS)


class ByScoresSettings(CalibrationSettings):
    """What the weights are judged by, and what is compared with what.

    Parameters
    ----------
    criterion : str
    compare : {"row", "layer"}, optional
        Single weights compete within their output or within the layer; as the criterion's paper has it if not
        given. Other structures compete as they always do.
    """

    criterion: Annotated[str, AfterValidator(readable(*CALIBRATED))] = "magnitude"
    compare: Literal["row", "layer"] | None = None


@METHODS.register("one_shot")
class ByScores(OneShot):
    """Keeps the units whose weights have the highest scores by a criterion; nothing is trained or adjusted.

    Criteria that read gradients need batches with labels: the loss is cross-entropy.

    References
    ----------
    S. Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015,
    section 3, and each criterion's own.
    """

    needs = Need.CRITERION
    Settings = ByScoresSettings
    settings: ByScoresSettings
    when = "a first look at speed, in seconds; or moderate sparsity before a long retraining"

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.seen = Scores(self.settings.criterion)

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Sum what the criterion reads.

        Raises
        ------
        DataError
            If there is no sample, or a batch has no labels for a criterion that reads gradients.
        """
        if self.seen.criterion.reads is Reads.INPUTS:
            inputs = (x for x, _ in take(batches, self.settings.samples))
            deque(observing(self.model, [t.name for t in self.targets], self._add_inputs, inputs), 0)
        elif self.seen.criterion.reads is Reads.GRADIENTS:
            self._add_gradients(batches)

    def finish(self) -> dict[str, Mask]:
        """The masks of the weights as they are now.

        Raises
        ------
        SparseflowError
            If the criterion needs data and there was no calibration.
        """
        return self.masks_by(self._compared)

    def scores(self, target: Target) -> Array:
        """The criterion's scores, shape of the weight."""
        return array_of(self.seen.of(target.name, self.weight(target)))

    def _compared(self, target: Target) -> Array:
        """The scores, or their ranks within the row where rows are compared apart."""
        by_rows = self.settings.compare == "row" if self.settings.compare else self.seen.criterion.by_rows
        if not by_rows or not isinstance(target.structure, Unstructured):
            return self.scores(target)
        scores = self.seen.of(target.name, self.weight(target)).double().flatten(1)
        below = scores.argsort(dim=1, stable=True).argsort(dim=1).double()
        ranks = below + scores / (1 + scores.max())  # ties between rows by score
        return array_of(ranks.reshape(self.weight(target).shape))

    def _add_inputs(self, name: str, layer: nn.Module, x: Tensor) -> None:
        self.seen.add(name, layer.weight, input_rows(layer, x))

    def _add_gradients(self, batches: Iterable[Any]) -> None:
        weights = {t.name: self.weight(t) for t in self.targets}
        frozen = [weight for weight in weights.values() if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(self.model) as device:
            for x, labels in take(batches, self.settings.samples):
                if labels is None:
                    raise DataError(f"{self.seen.name}: found batches without labels; give (x, labels)")
                loss = F.cross_entropy(self.model(x.to(device)), labels.to(device))
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    self.seen.add(name, weight, gradient)
        for weight in frozen:
            weight.requires_grad_(False)


def method_of(kind: str) -> tuple[type[Method], dict[str, Any]]:
    """The method of a name, and the settings that the name says: a criterion's is `ByScores` with it.

    Raises
    ------
    RegistryError
        If neither a method nor such a criterion has that name.
    """
    if kind not in METHODS and kind in criteria_of(CALIBRATED):
        return ByScores, {"criterion": kind}
    return METHODS[kind], {}
