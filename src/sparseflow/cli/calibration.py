"""DATA on the command line → arrays of samples for a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparseflow.errors import DataError, first_line, needs

if TYPE_CHECKING:
    from sparseflow.engine.runtime.manifest import Signature

Array = npt.NDArray[Any]
FILES = (".npy", ".npz")


def load_samples(text: str, inputs: Sequence[Signature], limit: int) -> tuple[Array, ...]:
    """At most ``limit`` samples for each input of a model.

    Parameters
    ----------
    text : str
        A ``.npy`` file with one array (count, …); a ``.npz`` file with one for each input, by name or in order; or the
        name of a data set, whose test images are normalised as in training.
    inputs : sequence of Signature
    limit : int

    Returns
    -------
    tuple of array
        One for each input, (count, …).

    Raises
    ------
    DataError
        If the file is missing or holds something else, or does not fit the inputs.
    RegistryError
        If there is no such data set.
    """
    path = Path(text)
    arrays = _from_file(path, inputs) if path.suffix in FILES else (_from_data_set(text, limit),)
    counts = {len(a) for a in arrays if a.ndim}
    fits = len(arrays) == len(inputs) and all(
        a.shape[1:] == tuple(spec.shape[1:]) for a, spec in zip(arrays, inputs, strict=True)
    )
    if not fits or len(counts) != 1:
        found = ", ".join(str(a.shape) for a in arrays)
        wanted = ", ".join(f"{spec.name} {('count', *spec.shape[1:])}" for spec in inputs)
        raise DataError(
            f"{text}: found arrays of shape {found}; the model takes {wanted}; give data that fit it"
        )
    return tuple(np.asarray(a[:limit], dtype=spec.dtype) for a, spec in zip(arrays, inputs, strict=True))


def calibration_calls(
    data: str | None, inputs: Sequence[Signature], limit: int
) -> list[tuple[Array, ...]] | None:
    """The calls to calibrate with, of the model's own batch size; None without ``data``.

    Raises
    ------
    DataError, RegistryError
        As `load_samples`.
    """
    if data is None:
        return None
    from sparseflow.engine.calibrate import batches

    return list(batches(load_samples(data, inputs, limit), [spec.shape for spec in inputs], limit))


def _from_file(path: Path, inputs: Sequence[Signature]) -> tuple[Array, ...]:
    from sparseflow.engine.runtime.manifest import UNREADABLE

    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return (content,)
        with content:
            names = [spec.name for spec in inputs]
            keys = names if set(names) <= set(content.files) else content.files
            return tuple(np.asarray(content[key]) for key in keys)
    except UNREADABLE as error:
        raise DataError(
            f"{path}: no readable array ({first_line(error)}); write it with numpy.save or numpy.savez"
        ) from error


def _from_data_set(name: str, limit: int) -> Array:
    with needs("train", f"data set {name}", DataError):
        from sparseflow.data import Batches, load_data
    data = load_data(name)
    count = min(limit, len(data.test_images))
    batch = Batches(data.test_images[:count], data.test_labels[:count], count, data.statistics())
    images, _labels = next(iter(batch))
    return np.asarray(images.numpy())
