"""How training reports what it is doing: events, and two ways of showing them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class TrainEvent:
    """A moment of a training stage.

    Parameters
    ----------
    stage : str
        The stage's name.
    epoch, epochs : int
        Completed epochs, and how many there will be.
    step, steps : int
        Completed batches of the running epoch and its number of batches.
    learning_rate : float
    loss : float
        Mean training loss of the epoch so far, penalty included.
    accuracy : float, optional
        On the test data, in 0..1; present when an epoch has just been evaluated.
    detail : str
        What the method has to say, such as its ρ and residual.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    learning_rate: float
    loss: float
    accuracy: float | None = None
    detail: str = ""


ProgressCallback = Callable[[TrainEvent], None]


class LogProgress:
    """One line for each epoch, for log files.

    Parameters
    ----------
    stream : TextIO
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._start = time.monotonic()

    def __call__(self, event: TrainEvent) -> None:
        if event.accuracy is None:
            return
        line = (
            f"{time.monotonic() - self._start:8.0f}s {event.stage} {event.epoch}/{event.epochs}"
            f" loss {event.loss:.4f} accuracy {event.accuracy:.4f} {event.detail}"
        )
        print(line.rstrip(), file=self.stream, flush=True)


class RichProgress(Progress):
    """A live bar for each stage; a context manager.

    Parameters
    ----------
    console : Console, optional
    """

    def __init__(self, console: Console | None = None) -> None:
        status = TextColumn("{task.fields[status]}")
        name = TextColumn("{task.description}")
        super().__init__(SpinnerColumn(), name, BarColumn(), status, TimeRemainingColumn(), console=console)
        self._stages: dict[str, TaskID] = {}

    def __call__(self, event: TrainEvent) -> None:
        total = event.epochs * event.steps
        if event.stage not in self._stages:
            self._stages[event.stage] = self.add_task(event.stage, total=total, status="")
        status = f"epoch {event.epoch}/{event.epochs} loss {event.loss:.3f}"
        if event.accuracy is not None:
            status += f" accuracy {event.accuracy:.2%} {event.detail}"
        done = event.epoch * event.steps + (event.step if event.accuracy is None else 0)
        self.update(self._stages[event.stage], completed=done, total=total, status=status.rstrip())
