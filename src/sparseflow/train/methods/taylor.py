"""First-order Taylor importance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.core.mask import Mask
from sparseflow.errors import DataError, SparseflowError
from sparseflow.train.methods.base import METHODS, CalibrationSettings, Need, OneShot
from sparseflow.train.methods.observe import take
from sparseflow.train.rules import Rule, scores_of
from sparseflow.train.trainer import device_of


@METHODS.register("taylor")
class Taylor(OneShot):
    """Keeps the units with the largest ``Σ_{s in unit} (g_s w_s)²``, summed over calibration batches.

    ``(g w)²`` is the first-order estimate of the squared change of the loss when w is removed. The loss is
    cross-entropy, so the batches need labels.

    References
    ----------
    P. Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, section 3,
    equations 7 and 8.
    """

    needs = Need.CALIBRATION
    Settings = CalibrationSettings
    settings: CalibrationSettings
    when = "filters and channels, before a retraining; needs labelled data"

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.importance: dict[str, Tensor] = {}

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Sum ``(g w)²`` of each batch.

        Raises
        ------
        DataError
            If a batch has no labels.
        """
        weights = {t.name: self.weight(t) for t in self.targets}
        was_training, device = self.model.training, device_of(self.model)
        frozen = [weight for weight in weights.values() if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        self.model.eval()
        for x, labels in take(batches, self.settings.samples):
            if labels is None:
                raise DataError("taylor: found batches without labels; give (x, labels)")
            loss = F.cross_entropy(self.model(x.to(device)), labels.to(device))
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                squares = (gradient * weight.detach()).square()
                self.importance[name] = squares + self.importance.get(name, 0)
        self.model.train(was_training)
        for weight in frozen:
            weight.requires_grad_(False)

    def finish(self) -> dict[str, Mask]:
        """The masks of the most important units.

        Raises
        ------
        SparseflowError
            If there was no calibration.
        """
        if self.targets and not self.importance:
            raise SparseflowError("taylor: has seen no data; call calibrate(batches) first")
        return {t.name: t.structure.mask(scores_of(self.importance[t.name]), t.density) for t in self.targets}
