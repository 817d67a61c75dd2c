"""How a stage is trained, and the learning rate of each of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparseflow.errors import SparseflowError

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
"""Unknown keys are errors, and so are values of another type."""


@contextmanager
def told_in_validation() -> Iterator[None]:
    """Errors of ours inside the ``with`` block become those that a validator may raise."""
    try:
        yield
    except SparseflowError as error:
        raise ValueError(str(error)) from None


class Settings(BaseModel):
    """Base of settings that are made in Python: strict, frozen.

    Raises
    ------
    SparseflowError
        For an unknown name or a value that is not allowed, in one line.
    """

    model_config = STRICT

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in detail["loc"])
            if not place:  # values that do not go together
                message = detail["msg"].removeprefix("Value error, ")
                raise SparseflowError(f"{type(self).__name__}: {message}") from None
            known = ", ".join(type(self).model_fields) or "none"
            raise SparseflowError(
                f"{type(self).__name__}: {place}: found {detail['input']!r}; {detail['msg']}; settings: {known}"
            ) from None


class StageKeys(BaseModel):
    """What every stage of a training has.

    Parameters
    ----------
    recalibrate : int
        Training batches from which batch norms estimate their statistics anew at the end; 0 turns it off.
    """

    model_config = STRICT
    recalibrate: int = Field(default=0, ge=0)


class TrainKeys(StageKeys):
    """What a stage of gradient descent has, in a recipe and in Python.

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
    clip : float
        Largest norm of the gradient, penalty included; 0 turns clipping off.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR", arXiv 1608.03983, section 3 (cosine annealing); H. Zhang et al.,
    "mixup", arXiv 1710.09412, section 2; G. Hinton et al., "Distilling the knowledge in a neural network",
    arXiv 1503.02531, section 2.
    """

    epochs: int = Field(ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    evaluate_every: int = Field(default=1, ge=1)
    freeze: tuple[str, ...] = Field(default=(), strict=False)
    ema: float = Field(default=0.0, ge=0, lt=1)
    distill: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    clip: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _warm_in_time(self) -> TrainKeys:
        if self.warmup > self.epochs:
            raise ValueError(f"warmup is {self.warmup} epochs, but the stage has {self.epochs}")
        return self


class TrainSettings(Settings, TrainKeys):
    """How one stage is trained; the keys are those of `TrainKeys`."""

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the given step (from 0): linear warm-up, then half a cosine."""
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return self.learning_rate * (step + 1) / warm if warm >= 1 else self.learning_rate
        position = (step - warm) / max(total - warm, 1)
        cosine = (1 + math.cos(math.pi * min(position, 1.0))) / 2
        return self.learning_rate * (self.final + (1 - self.final) * cosine)
