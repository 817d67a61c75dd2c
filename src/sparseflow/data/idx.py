"""Image sets in the IDX format of MNIST: Fashion-MNIST, and MNIST itself from a folder of one's own.

References
----------
Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats"; H. Xiao
et al., "Fashion-MNIST", arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import subprocess
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseflow.data.base import DATASETS, ImageData, data_roots
from sparseflow.errors import DataError

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_FASHION_HINT = "install the Debian package dataset-fashion-mnist, or point to a folder with the IDX files"
_MNIST_HINT = "point to a folder with MNIST's IDX files, or use mnist5k, which needs none"
_PREFIX = {"train": "train", "test": "t10k"}
_UBYTE = 0x08


@DATASETS.register("fashion_mnist")
def load_fashion_mnist(folder: Path | None = None) -> ImageData:
    """Fashion-MNIST: 60,000 training and 10,000 test images of shape (1, 28, 28).

    Parameters
    ----------
    folder : Path, optional
        With the four IDX files, gzipped or not, or with such a folder inside (torchvision's root also does).
        By default the folders of `data_roots`, then that of the Debian package ``dataset-fashion-mnist``.

    Raises
    ------
    DataError
        If the files are missing or broken.
    """
    roots = [folder] if folder is not None else [*data_roots(), *_debian_folders("dataset-fashion-mnist")]
    inside = ("", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST")
    return _load("fashion_mnist", roots, inside, FASHION_CLASSES, _FASHION_HINT)


@DATASETS.register("mnist")
def load_mnist(folder: Path | None = None) -> ImageData:
    """MNIST: 60,000 training and 10,000 test images of shape (1, 28, 28); see `load_fashion_mnist`.

    Raises
    ------
    DataError
        If the files are missing or broken.
    """
    roots = [folder] if folder is not None else data_roots()
    return _load(
        "mnist", roots, ("", "mnist", "MNIST/raw", "MNIST"), tuple(str(d) for d in range(10)), _MNIST_HINT
    )


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The uint8 array of an IDX file, gzipped or not.

    Raises
    ------
    DataError
        If the file is missing, truncated, or of another format or type.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE or not 1 <= content[3] <= 4:
        raise DataError(
            f"{path}: found the start {content[:4].hex()!r}; an IDX file of bytes is allowed; fetch it again"
        )
    axes = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    body = content[4 + 4 * axes :]
    if len(body) != prod(shape):
        raise DataError(
            f"{path}: found {len(body)} bytes for shape {shape}, needing {prod(shape)}; fetch the file again"
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape).copy()


def _load(
    name: str, roots: list[Path], inside: tuple[str, ...], classes: tuple[str, ...], hint: str
) -> ImageData:
    for root in roots:
        for part in inside:
            if _file(root / part, "train-images-idx3-ubyte") is not None:
                folder = root / part
                train = _read(name, folder, "train", hint)
                return ImageData(name, *train, *_read(name, folder, "test", hint), classes)
    raise DataError(f"{name}: not found in {', '.join(map(str, roots))}; {hint}")


def _read(name: str, folder: Path, part: str, hint: str) -> tuple[Tensor, Tensor]:
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        path = _file(folder, f"{_PREFIX[part]}-{kind}-ubyte")
        if path is None:
            raise DataError(f"{name}: {folder} has no {_PREFIX[part]}-{kind}-ubyte; {hint}")
        arrays.append(read_idx(path))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{name}: found images {images.shape} with labels {labels.shape} in {folder}; {hint}")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _file(folder: Path, stem: str) -> Path | None:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _debian_folders(package: str) -> list[Path]:
    """Folders of an installed Debian package that hold gzipped files; none where there is no dpkg."""
    try:
        listing = subprocess.run(
            ["dpkg", "-L", package], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    return list(dict.fromkeys(Path(n).parent for n in names if n.endswith(("ubyte.gz", "ubyte"))))
