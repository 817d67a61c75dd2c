"""How many bytes each index format takes: closed formulas, and the real arrays side by side.

The formulas are in bits, for n weights of v bits with density d, indices of i bits and pointers of p bits;
the derivations are in each format's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseflow.core.arrays import Array, ceil_div
from sparseflow.core.detect import detect
from sparseflow.core.formats import BSR, FORMATS, IndexFormat, NMFormat
from sparseflow.core.structures import NM, Block, Product
from sparseflow.errors import FormatError


def csr_bits(n: int, d: float, rows: int, v: int, i: int, p: int = 32) -> float:
    """dn(v + i) + (R + 1)p: smaller than dense below d = v/(v + i), pointers apart."""
    return d * n * (v + i) + (rows + 1) * p


def bsr_bits(n: int, d: float, rows: int, block: tuple[int, int], v: int, i: int, p: int = 32) -> float:
    """dn(v + i/ab) + (R/a + 1)p, with d the density of the blocks' cover."""
    a, b = block
    return d * n * (v + i / (a * b)) + (ceil_div(rows, a) + 1) * p


def bitmap_bits(n: int, d: float, v: int) -> float:
    """n + dnv."""
    return n + d * n * v


def run_length_bits(n: int, d: float, v: int, gap_bits: int) -> float:
    """dn(v + L)(1 + f) expected for zeros at random, f = q/(1 − q) fillers per value, q = (1 − d)^(2^L)."""
    q = (1.0 - d) ** (1 << gap_bits)
    return 0.0 if q >= 1.0 else d * n * (v + gap_bits) / (1.0 - q)


def ell_bits(rows: int, longest: int, v: int, i: int) -> float:
    """R·Kmax(v + i)."""
    return float(rows * longest * (v + i))


def nm_bits(n: int, keep: int, of: int, v: int) -> float:
    """n(N/M)(v + ⌈log2 M⌉)."""
    return n * keep / of * (v + (of - 1).bit_length())


def fkw_bits(
    kernels: int, filters: int, patterns: int, entries: int, v: int, bits: tuple[int, int, int, int]
) -> float:
    """κ(e·v + i) + F(P + 1)s + (F + 1)o + F·r + 8Pe, with ``bits`` = (i, s, o, r).

    i is a kernel's input channel, s a stride, o a filter's offset, r a place in the filter order; the last
    term is the library itself, a byte a position.
    """
    i, s, o, r = bits
    return float(
        kernels * (entries * v + i)
        + filters * (patterns + 1) * s
        + (filters + 1) * o
        + filters * r
        + 8 * patterns * entries
    )


def tap_list_bits(taps: int, rows: int, segments: int, v: int) -> float:
    """taps(rows·v + 32) + 32(segments + 1), segments = chunks × blocks of filters."""
    return float(taps * (rows * v + 32) + 32 * (segments + 1))


def survivors_bits(n: int, units: int, kept: int, v: int, i: int) -> float:
    """Filter, channel or column structure: the surviving units' weights and a list of ``kept`` indices."""
    return n / units * kept * v + kept * i


def feature_map_index_share(v: int, block: int = 1) -> float:
    """1/(Bv): the size of a bitmap over blocks of B elements, relative to its dense feature map."""
    return 1.0 / (block * v)


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
