"""The trainer: SGD with warm-up and cosine annealing, mixup, progress, and exact resume after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.errors import CheckpointError, SparseflowError
from sparseflow.train.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from sparseflow.train.progress import ProgressCallback, TrainEvent


class Loader(Protocol):
    """Anything that gives batches (x, labels) and knows how many; a torch `DataLoader` does."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


@runtime_checkable
class Hook(Protocol):
    """A method's part in the training loop; see `sparseflow.train.methods.InTraining`."""

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Called before each epoch with the number of completed ones and the number of its batches."""

    def penalty(self) -> Tensor | None:
        """What to add to the loss of a batch."""

    def before_step(self) -> None:
        """Called between the backward pass and the optimiser's step."""

    def after_step(self) -> None:
        """Called after each step of the optimiser."""

    def after_epoch(self, epoch: int) -> str:
        """Called with the number of completed epochs; the text goes into the progress line."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


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
    precision : {"fp32", "bf16"}
        bf16 runs the layers under autocast; the weights stay fp32.
    channels_last : bool
    evaluate_every : int
        Epochs between evaluations; the last epoch is always evaluated.
    freeze : tuple of str
        Modules whose parameters this stage leaves as they are.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR", arXiv 1608.03983, section 3 (cosine annealing); H. Zhang et al.,
    "mixup", arXiv 1710.09412, section 2.
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

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise SparseflowError(f"precision: found {self.precision!r}; fp32 or bf16 is allowed")
        if self.epochs < 0 or self.learning_rate <= 0 or not 0 <= self.warmup <= max(self.epochs, 0):
            raise SparseflowError(
                f"training settings: found epochs {self.epochs}, learning_rate {self.learning_rate}, warmup "
                f"{self.warmup}; epochs >= 0, a positive rate and warmup <= epochs are allowed"
            )

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the given step (from 0): linear warm-up, then half a cosine."""
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return self.learning_rate * (step + 1) / warm if warm >= 1 else self.learning_rate
        position = (step - warm) / max(total - warm, 1)
        cosine = (1 + math.cos(math.pi * min(position, 1.0))) / 2
        return self.learning_rate * (self.final + (1 - self.final) * cosine)


def evaluate(model: nn.Module, loader: Loader) -> float:
    """Fraction of correctly classified samples, in 0..1; the model keeps its mode."""
    with torch.no_grad():
        was_training = model.training
        model.eval()
        device = device_of(model)
        right = total = 0
        for x, labels in loader:
            predicted = model(x.to(device)).argmax(1)
            right += int((predicted == labels.to(device)).sum())
            total += len(labels)
        model.train(was_training)
        return right / max(total, 1)


@dataclass(frozen=True)
class Session:
    """Under what name a stage is trained, where it is kept, and who is told.

    Parameters
    ----------
    name : str
        The stage's name, for progress.
    checkpoint : Path, optional
        Written after each epoch and, if there, resumed from.
    fingerprint : str
        Identifies the run; a checkpoint with another one is refused.
    progress : callable, optional
        Called with `TrainEvent`.
    """

    name: str = "train"
    checkpoint: Path | None = None
    fingerprint: str = ""
    progress: ProgressCallback | None = None


class Trainer:
    """Trains a classifier for one stage; called again after a kill, it goes on from the last whole epoch.

    Parameters
    ----------
    model : nn.Module
        Trained in place, on the device where its parameters are.
    train, test : Loader
        ``train.set_epoch(epoch)`` is called where it exists.
    settings : TrainSettings
    hook : Hook, optional
        The sparsity method's part.
    session : Session, optional
        Name, checkpoint and progress.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Loader,
        test: Loader,
        settings: TrainSettings,
        hook: Hook | None = None,
        session: Session | None = None,
    ) -> None:
        self.model, self.train, self.test, self.settings = model, train, test, settings
        self.hook, self.session = hook, session or Session()
        self.name, self.checkpoint = self.session.name, self.session.checkpoint
        self._report = self.session.progress or (lambda event: None)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._frozen = self._to_freeze()
        self.optimizer = self._make_optimizer()

    def fit(self) -> list[dict[str, float]]:
        """Train to the end of the stage.

        Returns
        -------
        list of dict
            ``loss``, ``seconds`` and, where it was evaluated, ``accuracy`` of each epoch.

        Raises
        ------
        CheckpointError
            If the checkpoint is broken or belongs to another run.
        SparseflowError
            If the loss is no longer finite.
        """
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(self.checkpoint)
        for parameter in self._frozen:
            parameter.requires_grad_(False)  # no gradient is even computed
        while self.epoch < self.settings.epochs:
            start = time.monotonic()
            loss = self._train_epoch()
            self.epoch += 1
            detail = self.hook.after_epoch(self.epoch) if self.hook is not None else ""
            record = {"loss": loss}
            if self.epoch % self.settings.evaluate_every == 0 or self.epoch == self.settings.epochs:
                record["accuracy"] = evaluate(self.model, self.test)
            self.history.append(record | {"seconds": time.monotonic() - start})
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, self._state())
            self._report(self._event(0, loss, record.get("accuracy"), detail))
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.model.eval()
        return self.history

    def _train_epoch(self) -> float:
        self.model.train()
        set_epoch = getattr(self.train, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        device, steps, total, step = device_of(self.model), len(self.train), 0.0, 0
        if self.hook is not None:
            self.hook.begin_epoch(self.epoch, steps)
        for step, (x, labels) in enumerate(self.train, start=1):
            rate = self.settings.rate(self.epoch * steps + step - 1, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            x, labels = x.to(device), labels.to(device)
            if self.settings.channels_last and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            loss = self._loss(x, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.hook is not None:
                self.hook.before_step()
            self.optimizer.step()
            if self.hook is not None:
                self.hook.after_step()
            total += float(loss.detach())
            if not math.isfinite(total):
                raise SparseflowError(
                    f"{self.name}: the loss is not finite in epoch {self.epoch + 1}, step {step}, at "
                    f"learning rate {rate:.3g}; lower the learning rate or lengthen the warm-up"
                )
            self._report(self._event(step, total / step))
        return total / max(step, 1)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        s = self.settings
        autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=s.precision == "bf16")
        if s.mixup > 0:
            share = float(torch.distributions.Beta(s.mixup, s.mixup).sample())
            other = torch.randperm(len(x)).to(x.device)
            with autocast:
                logits = self.model(share * x + (1 - share) * x[other])
            loss = share * F.cross_entropy(logits.float(), labels, label_smoothing=s.label_smoothing)
            loss = loss + (1 - share) * F.cross_entropy(
                logits.float(), labels[other], label_smoothing=s.label_smoothing
            )
        else:
            with autocast:
                logits = self.model(x)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=s.label_smoothing)
        penalty = self.hook.penalty() if self.hook is not None else None
        return loss if penalty is None else loss + penalty

    def _to_freeze(self) -> list[nn.Parameter]:
        modules = dict(self.model.named_modules())
        unknown = [name for name in self.settings.freeze if name not in modules]
        if unknown:
            raise SparseflowError(
                f"{self.name}: freeze: no module {unknown[0]!r} in the model; correct its name"
            )
        return [p for name in self.settings.freeze for p in modules[name].parameters() if p.requires_grad]

    def _make_optimizer(self) -> torch.optim.SGD:
        s = self.settings
        frozen = {id(p) for p in self._frozen}
        trainable = [p for p in self.model.parameters() if p.requires_grad and id(p) not in frozen]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": s.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.SGD(groups, lr=s.learning_rate, momentum=s.momentum, nesterov=s.momentum > 0)

    def _event(self, step: int, loss: float, accuracy: float | None = None, detail: str = "") -> TrainEvent:
        rate = float(self.optimizer.param_groups[0]["lr"])
        return TrainEvent(
            self.name, self.epoch, self.settings.epochs, step, len(self.train), rate, loss, accuracy, detail
        )

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.session.fingerprint,
            "stage": self.name,
            "epoch": self.epoch,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state_dict() if self.hook is not None else None,
            "random": random_state(),
        }

    def _resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state.get("fingerprint") != self.session.fingerprint or state.get("stage") != self.name:
            raise CheckpointError(
                f"{path}: belongs to another run (stage {state.get('stage')!r}, this is {self.name!r} with "
                "other settings); choose another folder or delete it"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.hook is not None:
                self.hook.load_state_dict(state["hook"])
            restore_random_state(state["random"])
            self.epoch, self.history = state["epoch"], state["history"]
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{path}: does not fit this model ({reason}); choose another folder or delete it"
            ) from error


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
