"""How many bytes each index format takes for a weight, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.detect import detect
from sparseflow.core.formats import BSR, FORMATS, IndexFormat, NMFormat
from sparseflow.core.structures import NM, Block, Product
from sparseflow.errors import FormatError


@dataclass(frozen=True)
class StorageRow:
    """One format's storage of one weight.

    Attributes
    ----------
    format : str
        Label of the format, ``dense`` for the weight itself.
    value_bytes, index_bytes : int
        0 if the format cannot hold the weight.
    relative : float
        All bytes over the dense weight's; 0 if it cannot.
    reason : str
        Why it cannot; empty if it can.
    """

    format: str
    value_bytes: int
    index_bytes: int
    relative: float
    reason: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        return self.value_bytes + self.index_bytes


def storage_table(weight: Array, formats: tuple[IndexFormat, ...] | None = None) -> tuple[StorageRow, ...]:
    """Real bytes of ``weight`` in every format: dense, then smallest first, then those that cannot.

    Parameters
    ----------
    weight : ndarray, shape (out, in) or (out, in, *kernel)
    formats : tuple of IndexFormat, optional
        None: the usual parameters of each registered format, and those that the detected structure suggests.

    Raises
    ------
    StructureError
        If the weight's shape is not of such a kind.
    """
    weight = np.asarray(weight)
    if formats is None:
        formats = tuple(
            dict.fromkeys([*_suggested(weight), *(f for k in FORMATS.values() for f in k.examples())])
        )
    rows = []
    for candidate in formats:
        try:
            index = candidate.encode(weight)
        except FormatError as error:
            rows.append(StorageRow(candidate.label, 0, 0, 0.0, str(error)))
        else:
            share = index.nbytes / weight.nbytes
            rows.append(StorageRow(candidate.label, index.value_bytes, index.index_bytes, share))
    rows.sort(key=lambda row: (bool(row.reason), row.nbytes))
    return (StorageRow("dense", weight.nbytes, 0, 1.0), *rows)


def _suggested(weight: Array) -> tuple[IndexFormat, ...]:
    structure = detect(weight).structure
    if isinstance(structure, Product):
        structure = structure.inner
    if isinstance(structure, Block):
        return (BSR(structure.out, structure.in_),)
    if isinstance(structure, NM):
        return (NMFormat(structure.n, structure.m, structure.axis),)
    return ()
