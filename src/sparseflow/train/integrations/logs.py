"""Training events as a CSV file or for TensorBoard; both are progress callbacks of `run_recipe` and `Session`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from sparseflow.errors import SparseflowError, needs
from sparseflow.train.progress import TrainEvent

COLUMNS = ("stage", "epoch", "learning_rate", "loss", "accuracy", "detail")


class CsvLog:
    """One line for each epoch; a resumed training appends.

    Parameters
    ----------
    path : path
        Gets a header of `COLUMNS` when it is new.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(COLUMNS)

    def __call__(self, event: TrainEvent) -> None:
        if event.step == 0:
            accuracy = "" if event.accuracy is None else event.accuracy
            self._write((event.stage, event.epoch, event.learning_rate, event.loss, accuracy, event.detail))

    def _write(self, row: tuple[Any, ...]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


class TensorBoardLog:
    """Loss, learning rate and accuracy of each epoch, for TensorBoard; a context manager.

    Parameters
    ----------
    folder : path

    Raises
    ------
    SparseflowError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        with needs("tensorboard", "TensorBoard log", SparseflowError):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder))

    def __call__(self, event: TrainEvent) -> None:
        if event.step == 0:
            self._writer.add_scalar(f"{event.stage}/loss", event.loss, event.epoch)
            self._writer.add_scalar(f"{event.stage}/learning rate", event.learning_rate, event.epoch)
            if event.accuracy is not None:
                self._writer.add_scalar(f"{event.stage}/accuracy", event.accuracy, event.epoch)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
