"""How many bits each index format takes, in closed form: what the arrays are held against.

For n weights of v bits with density d, indices of i bits and pointers of p bits; the derivations are in each format's
docstring.
"""

from __future__ import annotations

from sparseflow.core.arrays import ceil_div


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
