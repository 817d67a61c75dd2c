"""A user's own folder of images: one sub-folder for each class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseflow.data.base import ImageData
from sparseflow.errors import DataError, first_line, needs

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class FolderSettings:
    """How images become arrays of one size, and which of them test.

    Parameters
    ----------
    size : int
        Side of the square: the shorter side is resized to it (bicubic), the middle is cut out.
    channels : int
        3 for colour, 1 for grey.
    test_fraction : float
        Part of each class that tests, where the folder has no ``train`` and ``test``.
    split_seed : int
        Of that choice.
    """

    size: int
    channels: int = 3
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in _MODES or not 0 < self.test_fraction < 1:
            raise DataError(
                f"images: found size {self.size}, channels {self.channels}, test_fraction "
                f"{self.test_fraction}; a positive size, 1 or 3 channels and a fraction inside (0, 1) are allowed"
            )


def load_folder(folder: Path, settings: FolderSettings) -> ImageData:
    """The images below ``folder``: ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` split by a fixed seed.

    Classes are the sub-folders in alphabetical order. All images are read into memory.

    Parameters
    ----------
    folder : Path
    settings : FolderSettings

    Raises
    ------
    DataError
        If the folder has no classes, a class has too few images, training and test classes differ, or a file
        cannot be read as an image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with a sub-folder of images for each class")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _classes(folder / "train"), _classes(folder / "test")
        if list(train) != list(test):
            odd = sorted(set(train) ^ set(test))[0]
            raise DataError(
                f"{folder}: class {odd!r} is in only one of train and test; give it images in both"
            )
    else:
        train, test = _split(_classes(folder), settings)
    images, labels = _read(train, settings)
    test_images, test_labels = _read(test, settings)
    return ImageData(str(folder), images, labels, test_images, test_labels, tuple(train))


def content_hash(data: ImageData) -> str:
    """Identifies images and labels, wherever they lie."""
    digest = hashlib.sha256()
    for part in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Sorted images of each class, in alphabetical order."""
    found = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in inside.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(
                f"{inside}: holds no images; {', '.join(SUFFIXES)} are read; remove it or fill it"
            )
        found[inside.name] = files
    if len(found) < 2:
        raise DataError(
            f"{folder}: found {len(found)} sub-folders; one for each class, at least 2, are needed"
        )
    return found


def _split(
    classes: dict[str, list[Path]], settings: FolderSettings
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train, test = {}, {}
    random = np.random.default_rng(settings.split_seed)
    for name, files in classes.items():
        count = max(1, round(settings.test_fraction * len(files)))
        if count >= len(files):
            raise DataError(
                f"{files[0].parent}: found {len(files)} images, of which {count} would test; at least "
                f"{count + 1} are needed"
            )
        chosen = set(random.permutation(len(files))[:count].tolist())
        test[name] = [file for i, file in enumerate(files) if i in chosen]
        train[name] = [file for i, file in enumerate(files) if i not in chosen]
    return train, test


def _read(classes: dict[str, list[Path]], settings: FolderSettings) -> tuple[torch.Tensor, torch.Tensor]:
    count = sum(len(files) for files in classes.values())
    images = np.empty((count, settings.channels, settings.size, settings.size), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    i = 0
    for label, files in enumerate(classes.values()):
        for file in files:
            images[i], labels[i] = _pixels(file, settings), label
            i += 1
    return torch.from_numpy(images), torch.from_numpy(labels)


def _pixels(file: Path, settings: FolderSettings) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image, (channels, size, size)."""
    with needs("train", str(file), DataError):
        from PIL import Image, ImageOps
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture).convert(_MODES[settings.channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = first_line(error)
        raise DataError(f"{file}: not a readable image ({reason}); remove or replace it") from error
    square = ImageOps.fit(upright, (settings.size, settings.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, dtype=np.uint8).reshape(settings.size, settings.size, settings.channels)
    return pixels.transpose(2, 0, 1)
