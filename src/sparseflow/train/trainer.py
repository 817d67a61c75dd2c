"""The trainer: one stage of SGD with warm-up and cosine annealing, progress, and exact resume after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparseflow.errors import CheckpointError, SparseflowError, first_line
from sparseflow.train import parallel
from sparseflow.train.aids import Average, Objective, recalibrate_batch_norm
from sparseflow.train.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from sparseflow.train.progress import ProgressCallback, TrainEvent
from sparseflow.train.settings import TrainSettings


class Loader(Protocol):
    """Anything that gives batches (x, labels) and knows how many; a torch `DataLoader` does."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class Hook:
    """A part in the training loop, such as a method's; a subclass overrides what it takes part in."""

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Called before each epoch with the number of completed ones and the number of its batches."""

    def penalty(self) -> Tensor | None:
        """What to add to the loss of a batch; None for nothing."""
        return None

    def before_step(self) -> None:
        """Called between the backward pass and the optimiser's step; may change gradients."""

    def after_step(self) -> None:
        """Called after each step of the optimiser."""

    def after_epoch(self, epoch: int) -> str:
        """Called with the number of completed epochs; the text goes into the progress line."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode inside the ``with`` block, afterwards the mode from before; gives the model's device."""
    was_training = model.training
    model.eval()
    try:
        yield device_of(model)
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, loader: Loader) -> float:
    """Fraction of correctly classified samples, in 0..1; the model keeps its mode."""
    right = total = 0
    with torch.no_grad(), evaluating(model) as device:
        for i, (x, labels) in enumerate(loader):
            if i % parallel.processes() != parallel.rank():
                continue  # another process counts this batch
            predicted = model(x.to(device)).argmax(1)
            right += int((predicted == labels.to(device)).sum())
            total += len(labels)
    right_all, total_all = parallel.total([right, total])
    return right_all / max(total_all, 1)


def frozen(
    model: nn.Module, names: Sequence[str], where: str, error: type[SparseflowError] = SparseflowError
) -> list[nn.Parameter]:
    """The parameters of the named modules that would otherwise be trained.

    Raises
    ------
    error
        If there is no such module; ``where`` says who named it.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise error(f"{where}: the model has no module {name!r}; correct its name")
    return [p for name in names for p in modules[name].parameters() if p.requires_grad]


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
    teacher : nn.Module, optional
        The network to distil from, where the settings ask for it.
    """

    name: str = "train"
    checkpoint: Path | None = None
    fingerprint: str = ""
    progress: ProgressCallback | None = None
    teacher: nn.Module | None = None


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
        self.hook, self.session = hook or Hook(), session or Session()
        self.name, self.checkpoint = self.session.name, self.session.checkpoint
        self._report = self.session.progress or (lambda event: None)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._objective = Objective(settings, self.session.teacher)
        self._average = Average(model, settings.ema) if settings.ema > 0 else None
        self._scaler = torch.amp.GradScaler(device_of(model).type, enabled=settings.precision == "fp16")
        self._forward: nn.Module = model
        self._frozen = frozen(model, settings.freeze, f"{self.name}: freeze")
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
        parallel.synchronise(self.model)
        self._forward = parallel.shared(self.model)
        while self.epoch < self.settings.epochs:
            start = time.monotonic()
            loss = self._train_epoch()
            self.epoch += 1
            parallel.synchronise(self.model)  # so that methods find the same in all processes
            detail = self.hook.after_epoch(self.epoch)
            record = {"loss": loss}
            last = self.epoch == self.settings.epochs
            if last:
                self._settle()
            if last or self.epoch % self.settings.evaluate_every == 0:
                kept = self.model if self._average is None or last else self._average.module
                record["accuracy"] = evaluate(kept, self.test)
            self.history.append(record | {"seconds": time.monotonic() - start})
            if self.checkpoint is not None:
                state = self._state()
                if parallel.rank() == 0:
                    save_checkpoint(self.checkpoint, state)
            self._report(self._event(0, loss, record.get("accuracy"), detail))
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.model.eval()
        return self.history

    def _train_epoch(self) -> float:
        self.model.train()
        for loader in (self.train, getattr(self.train, "sampler", None)):  # a distributed sampler has it too
            set_epoch = getattr(loader, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)
        device, steps, total, step = device_of(self.model), len(self.train), 0.0, 0
        self.hook.begin_epoch(self.epoch, steps)
        for step, (x, labels) in enumerate(self.train, start=1):
            rate = self.settings.rate(self.epoch * steps + step - 1, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            x, labels = x.to(device), labels.to(device)
            if self.settings.channels_last and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            loss = self._step(x, labels)
            total += loss
            if not math.isfinite(total):
                raise SparseflowError(
                    f"{self.name}: the loss is not finite in epoch {self.epoch + 1}, step {step}, at "
                    f"learning rate {rate:.3g}; lower the learning rate or lengthen the warm-up"
                )
            self._report(self._event(step, total / step))
        (mean,) = parallel.total([total / max(step, 1) / parallel.processes()])
        return mean

    def _step(self, x: Tensor, labels: Tensor) -> float:
        """One step of the optimiser; the loss of its batch."""
        loss = self._objective(self._forward, x, labels)
        penalty = self.hook.penalty()
        if penalty is not None:
            loss = loss + penalty
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimizer)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.hook.before_step()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.hook.after_step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        return float(loss.detach())

    def _settle(self) -> None:
        """What is kept of the stage: the averaged weights, with batch-norm statistics of their own."""
        if self._average is not None:
            self._average.copy_to(self.model)
        if self.settings.recalibrate > 0:
            recalibrate_batch_norm(self.model, self.train, self.settings.recalibrate)
        parallel.synchronise(self.model)

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
        state = {
            "fingerprint": self.session.fingerprint,
            "stage": self.name,
            "epoch": self.epoch,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state_dict(),
            "random": parallel.gathered(random_state()),
        }
        if self._average is not None:
            state["average"] = self._average.state_dict()
        if self._scaler.is_enabled():
            state["scaler"] = self._scaler.state_dict()
        return state

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
            self.hook.load_state_dict(state["hook"])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            if self._scaler.is_enabled():
                self._scaler.load_state_dict(state["scaler"])
            restore_random_state(self._own_random(state["random"]))
            self.epoch, self.history = state["epoch"], state["history"]
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: does not fit this model ({first_line(error)}); choose another folder or delete it"
            ) from error

    @staticmethod
    def _own_random(saved: Any) -> dict[str, Any]:
        states: list[dict[str, Any]] = saved if isinstance(saved, list) else [saved]  # one, in older files
        if len(states) != parallel.processes():
            raise ValueError(f"it is of {len(states)} processes, not of {parallel.processes()}")
        return states[parallel.rank()]
