"""The files of a saved engine: the manifest that describes it, and whether code and weights are those it describes."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseflow.core.codec import decode, encode
from sparseflow.core.files import BROKEN_FILE
from sparseflow.core.plan import Plan
from sparseflow.engine.runtime.threads import MOST_THREADS
from sparseflow.errors import EngineError, first_line

Array = npt.NDArray[Any]
MANIFEST, CODE, WEIGHTS = "manifest.json", "code.so", "weights.npz"
FORMAT = 1
UNREADABLE = (*BROKEN_FILE, ArithmeticError, MemoryError, SyntaxError, zlib.error)
"""What NumPy raises on a damaged file, whichever part is damaged."""


@dataclass(frozen=True)
class Signature:
    """One input, output or weight: its name, static shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Manifest:
    """All that is known of an engine besides its code and weights.

    Attributes
    ----------
    weights : tuple of Signature or None
        What `WEIGHTS` holds, in order; None in engines saved before it was recorded.
    """

    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    plan: Plan
    calls: tuple[tuple[str, str], ...]
    target: str
    machine: str
    flags: tuple[str, ...]
    architecture: str
    threads: int
    tvm_version: str
    sparseflow_version: str
    weights: tuple[Signature, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads: found {self.threads}, allowed: 1 to {MOST_THREADS}")


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest beside code and weights, with their checksums."""
    sums = {name: sha256(folder / name) for name in (CODE, WEIGHTS)}
    data = {"format": FORMAT, "sha256": sums, **encode(manifest)}
    (folder / MANIFEST).write_text(json.dumps(data, indent=1))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved engine whose files are whole.

    Raises
    ------
    EngineError
        If the folder is no engine, is truncated or was written by another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise EngineError(
            f"{folder}: no engine here ({MANIFEST} is missing); give a folder that `compile -o` wrote"
        )
    try:
        data = json.loads(path.read_text())
        found, sums = data.pop("format"), data.pop("sha256")
        if found != FORMAT:
            raise EngineError(
                f"{folder}: engine format {found}, this version reads {FORMAT}; compile it anew"
            )
        manifest = decode(Manifest, data)
        sums = {name: str(sums[name]) for name in (CODE, WEIGHTS)}
    except EngineError:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        OSError,
        RecursionError,
    ) as error:
        what = f" ({first_line(error)})" if isinstance(error, TypeError | ValueError) else ""
        raise EngineError(f"{path}: the manifest is damaged{what}; compile the engine anew") from error
    for name, expected in sums.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise EngineError(
                f"{folder / name}: truncated or changed since it was written; compile the engine anew"
            )
    return manifest


def write_weights(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Writes the packed weights of an engine."""
    np.savez(folder / WEIGHTS, **arrays)


def read_weights(folder: Path, wanted: tuple[Signature, ...] | None) -> dict[str, Array]:
    """The packed weights of a saved engine, which have to be those that its manifest lists.

    Raises
    ------
    EngineError
        If the file cannot be read, or holds others.
    """
    path = folder / WEIGHTS
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except UNREADABLE as error:
        raise EngineError(
            f"{path}: no readable weights ({first_line(error)}); compile the engine anew"
        ) from error
    found = tuple(Signature(name, a.shape, str(a.dtype)) for name, a in arrays.items())
    if wanted is not None and found != wanted:
        missing = [w for w in wanted if w not in found]
        surplus = [f for f in found if f not in wanted]
        difference = f"holds {surplus[0]}" if surplus else "holds them in another order"
        raise EngineError(
            f"{path}: {f'lacks {missing[0]}' if missing else difference}, unlike its manifest; compile the engine anew"
        )
    return arrays
