"""What a data set is to the trainer, and the registry of those that can be named in a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sparseflow.errors import DataError
from sparseflow.registry import Registry


@dataclass(frozen=True)
class ImageData:
    """Labelled images in memory.

    Parameters
    ----------
    name : str
        The registered name.
    train_images, test_images : Tensor of uint8, shape (count, channels, height, width)
    train_labels, test_labels : Tensor of int64, shape (count,)
    classes : tuple of str
        One name for each label.

    Raises
    ------
    DataError
        If shapes, types or labels do not fit together.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images: Tensor = getattr(self, f"{part}_images")
            labels: Tensor = getattr(self, f"{part}_labels")
            where = f"{self.name} ({part})"
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise DataError(
                    f"{where}: found {images.dtype} images of shape {tuple(images.shape)}; "
                    "uint8 (count, channels, height, width) is allowed; convert them"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise DataError(
                    f"{where}: found {labels.dtype} labels of shape {tuple(labels.shape)}; "
                    f"int64 ({len(images)},) is allowed; give one label for each image"
                )
            if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(self.classes):
                raise DataError(
                    f"{where}: labels are missing or outside 0..{len(self.classes) - 1}; fetch the data again"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(f"{self.name}: training and test images differ in shape; fetch the data again")

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images, in units of 0..1."""
        channels = self.train_images.shape[1]
        mean, std = [], []
        for c in range(channels):
            counts = torch.bincount(self.train_images[:, c].flatten().int(), minlength=256).double()
            values = torch.arange(256, dtype=torch.float64) / 255
            m = float((counts * values).sum() / counts.sum())
            mean.append(m)
            std.append(max(float((counts * (values - m) ** 2).sum() / counts.sum()) ** 0.5, 1e-6))
        return tuple(mean), tuple(std)


DATASETS: Registry[Callable[[Path | None], ImageData]] = Registry("data set")


def load_data(name: str, folder: str | Path | None = None) -> ImageData:
    """The data set registered under ``name``, read from ``folder`` or from where it is usually found.

    Raises
    ------
    RegistryError
        If the name is unknown.
    DataError
        If the files are missing or broken.
    """
    return DATASETS[name](None if folder is None else Path(folder))


def hold_out(data: ImageData, count: int, seed: int = 0) -> tuple[ImageData, tuple[Tensor, Tensor]]:
    """The data without ``count`` training images, and these with their labels: for choices that must not see the test
    images.

    Parameters
    ----------
    data : ImageData
    count : int
    seed : int
        Of the choice, which is random.

    Raises
    ------
    DataError
        If so many are not left over.
    """
    total = len(data.train_images)
    if not 0 < count < total:
        raise DataError(f"{data.name}: validation: found {count}; 1 to {total - 1} images are allowed")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    held, kept = order[:count].sort().values, order[count:].sort().values
    images, labels = data.train_images, data.train_labels
    return replace(data, train_images=images[kept], train_labels=labels[kept]), (images[held], labels[held])


def data_roots() -> list[Path]:
    """Folders that are searched: ``$SPARSEFLOW_DATA`` if set, then ``data/`` below the working folder."""
    roots = [Path(os.environ["SPARSEFLOW_DATA"])] if os.environ.get("SPARSEFLOW_DATA") else []
    return [*roots, Path("data")]
