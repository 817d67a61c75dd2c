"""What helps a training along: the loss with mixup and distillation, averaged weights, batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from sparseflow.errors import SparseflowError
from sparseflow.train.settings import TrainSettings

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective:
    """The loss of a batch: cross-entropy with label smoothing and mixup, and the teacher's share.

    Parameters
    ----------
    settings : TrainSettings
    teacher : nn.Module, optional
        Needed when ``settings.distill`` is not 0; only its outputs are used.

    Raises
    ------
    SparseflowError
        If there is no teacher to distil from.
    """

    def __init__(self, settings: TrainSettings, teacher: nn.Module | None = None) -> None:
        if settings.distill > 0 and teacher is None:
            raise SparseflowError("distill: there is no teacher; give the dense model, or set distill to 0")
        self.settings = settings
        self.teacher = teacher.eval() if teacher is not None and settings.distill > 0 else None

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of images ``x`` (batch, ...) with ``labels`` (batch,)."""
        s = self.settings
        share, other = 1.0, None
        if s.mixup > 0:
            share = float(torch.distributions.Beta(s.mixup, s.mixup).sample())
            other = torch.randperm(len(x)).to(x.device)
            x = share * x + (1 - share) * x[other]
        with self._autocast(x):
            logits = model(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=s.label_smoothing)
        if other is not None:
            mixed = F.cross_entropy(logits, labels[other], label_smoothing=s.label_smoothing)
            loss = share * loss + (1 - share) * mixed
        if self.teacher is None:
            return loss
        with torch.no_grad(), self._autocast(x):
            target = self.teacher(x)
        return (1 - s.distill) * loss + s.distill * distillation(logits, target.float(), s.temperature)

    def _autocast(self, x: Tensor) -> torch.autocast:
        kind = _AUTOCAST.get(self.settings.precision)
        return torch.autocast(x.device.type, kind or torch.bfloat16, enabled=kind is not None)


def distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(target/T) ‖ softmax(logits/T))``, averaged over the batch; both (batch, classes).

    References
    ----------
    G. Hinton et al., arXiv 1503.02531, section 2: the factor T² keeps the gradient's size.
    """
    own = F.log_softmax(logits / temperature, 1)
    wanted = F.log_softmax(target / temperature, 1)
    return temperature**2 * F.kl_div(own, wanted, log_target=True, reduction="batchmean")


class Average(AveragedModel):
    """A moving average of a model's weights and buffers; the first update copies.

    Weights that are zero in every step are exactly zero in the average too, so that masks hold for it.

    Parameters
    ----------
    model : nn.Module
    decay : float
        In [0, 1); what remains of the average at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights and buffers of ``model``."""
        if int(self.n_averaged) > 0:
            model.load_state_dict(self.module.state_dict())


def recalibrate_batch_norm(model: nn.Module, loader: Iterable[Any], batches: int) -> None:
    """Estimate the statistics of all batch norms anew, from the first ``batches`` of ``loader``.

    Masks and averaged weights change what the layers before a batch norm give. A model without one is left alone.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    update_bn(islice(iter(loader), batches), model, device=device)
