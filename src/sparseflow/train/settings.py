"""How a stage is trained, and the learning rate of each of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseflow.errors import SparseflowError

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainSettings:
    """How one stage is trained.

    Parameters
    ----------
    epochs : int
    learning_rate : float
        At the end of the warm-up.
    momentum : float
        Nesterov momentum.
    weight_decay : float
        On parameters with at least two axes.
    warmup : float
        Epochs of linear warm-up.
    final : float
        Last learning rate as a fraction of ``learning_rate``.
    label_smoothing : float
    mixup : float
        Parameter α of the Beta distribution; 0 turns mixup off.
    precision : {"fp32", "bf16", "fp16"}
        bf16 and fp16 run the layers under autocast, fp16 with a scaled loss; the weights stay fp32.
    channels_last : bool
    evaluate_every : int
        Epochs between evaluations; the last epoch is always evaluated.
    freeze : tuple of str
        Modules whose parameters this stage leaves as they are.
    ema : float
        Decay, at each step, of the moving average of weights that is evaluated and kept at the end; 0 turns it off.
    distill : float
        Share of the loss that comes from the teacher's outputs; 0 turns distillation off.
    temperature : float
        Of the distillation's softmax.
    recalibrate : int
        Training batches from which batch norms estimate their statistics anew at the end; 0 turns it off.
    clip : float
        Largest norm of the gradient, penalty included; 0 turns clipping off.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR", arXiv 1608.03983, section 3 (cosine annealing); H. Zhang et al.,
    "mixup", arXiv 1710.09412, section 2; G. Hinton et al., "Distilling the knowledge in a neural network",
    arXiv 1503.02531, section 2.
    """

    epochs: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.0
    final: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    precision: str = "fp32"
    channels_last: bool = False
    evaluate_every: int = 1
    freeze: tuple[str, ...] = ()
    ema: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    recalibrate: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SparseflowError(f"precision: found {self.precision!r}; {', '.join(PRECISIONS)} are allowed")
        if self.epochs < 0 or self.learning_rate <= 0 or not 0 <= self.warmup <= max(self.epochs, 0):
            raise SparseflowError(
                f"training settings: found epochs {self.epochs}, learning_rate {self.learning_rate}, warmup "
                f"{self.warmup}; epochs >= 0, a positive rate and warmup <= epochs are allowed"
            )
        if not (0 <= self.ema < 1 and 0 <= self.distill <= 1 and self.temperature > 0):
            raise SparseflowError(
                f"training settings: found ema {self.ema}, distill {self.distill}, temperature "
                f"{self.temperature}; ema in [0, 1), distill in [0, 1] and a positive temperature are allowed"
            )
        if self.recalibrate < 0 or self.clip < 0:
            raise SparseflowError(
                f"training settings: found recalibrate {self.recalibrate}, clip {self.clip}; 0 or more is allowed"
            )

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the given step (from 0): linear warm-up, then half a cosine."""
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return self.learning_rate * (step + 1) / warm if warm >= 1 else self.learning_rate
        position = (step - warm) / max(total - warm, 1)
        cosine = (1 + math.cos(math.pi * min(position, 1.0))) / 2
        return self.learning_rate * (self.final + (1 - self.final) * cosine)
