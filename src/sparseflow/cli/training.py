"""How the commands that train show what they are doing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sparseflow.train.progress import LogProgress, RichProgress, TrainEvent

if TYPE_CHECKING:
    from sparseflow.studies.stages import StageEvent


@contextlib.contextmanager
def training_progress() -> Iterator[Callable[[TrainEvent | StageEvent], None]]:
    """Shows training and study stages on standard error: live bars on a terminal, lines in a log file."""
    console = Console(stderr=True, highlight=False)

    def stage(event: StageEvent) -> None:
        if event.status == "running":
            console.print(f"… {event.name} {event.detail}".rstrip(), style="dim")
        else:
            word = " (from an earlier run)" if event.status == "kept" else ""
            console.print(f"✓ {event.name} {event.seconds:.0f} s{word}")

    def route(train: Callable[[TrainEvent], None]) -> Callable[[TrainEvent | StageEvent], None]:
        return lambda event: train(event) if isinstance(event, TrainEvent) else stage(event)

    if console.is_terminal:
        with RichProgress(console) as bars:
            yield route(bars)
    else:
        yield route(LogProgress(sys.stderr))


@contextlib.contextmanager
def log_files(csv: Path | None, tensorboard: Path | None) -> Iterator[list[Callable[[TrainEvent], None]]]:
    """The logs that were asked for; none in processes that only help the first one."""
    from sparseflow.train.integrations.logs import CsvLog, TensorBoardLog

    logs: list[Callable[[TrainEvent], None]] = []
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", "0")) == 0:
            logs += [CsvLog(csv)] if csv is not None else []
            logs += [stack.enter_context(TensorBoardLog(tensorboard))] if tensorboard is not None else []
        yield logs
