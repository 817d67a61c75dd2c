"""Array helpers against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core.arrays import (
    block_sizes,
    expand_blocks,
    pack_bits,
    reduce_blocks,
    round_half_up,
    smallest_uint,
    top_k,
    unpack_bits,
)


@given(
    rows=st.integers(0, 5),
    n=st.integers(1, 20),
    k=st.integers(0, 20),
    top=st.integers(0, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_top_k_is_exact_and_stable(rows: int, n: int, k: int, top: int, seed: int) -> None:
    k = min(k, n)
    scores = np.random.default_rng(seed).integers(0, top + 1, (rows, n)).astype(float)
    keep = top_k(scores, k)
    for row, kept in zip(scores, keep, strict=True):
        best = sorted(range(n), key=lambda i: (-row[i], i))[:k]
        assert sorted(best) == np.flatnonzero(kept).tolist()


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    block=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_blocks_are_summed_counted_and_expanded(shape: list[int], block: list[int]) -> None:
    extents, box = tuple(shape), tuple(block[: len(shape)])
    x = np.arange(np.prod(extents)).reshape(extents)
    sums, sizes = reduce_blocks(np.add, x, box), block_sizes(box, extents)
    slow_sums, slow_sizes = np.zeros_like(sums), np.zeros_like(sums)
    for place in np.ndindex(extents):
        unit = tuple(p // b for p, b in zip(place, box, strict=True))
        slow_sums[unit] += x[place]
        slow_sizes[unit] += 1
    np.testing.assert_array_equal(sums, slow_sums)
    np.testing.assert_array_equal(sizes, slow_sizes)
    expanded = expand_blocks(sums, box, extents)
    for place in np.ndindex(extents):
        assert expanded[place] == sums[tuple(p // b for p, b in zip(place, box, strict=True))]


@given(bits=st.integers(1, 16), values=st.lists(st.integers(0, 65535), max_size=40))
@settings(max_examples=100, deadline=None)
def test_bits_pack_and_unpack(bits: int, values: list[int]) -> None:
    masked = np.array([value % (1 << bits) for value in values], dtype=np.int64)
    packed = pack_bits(masked, bits)
    assert len(packed) == -(-len(values) * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, len(values)), masked)


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.5, 1), (4.5, 5), (4.4999, 4), (0.1 * 45, 5), (0.35 * 10, 4), (0, 0)]
)
def test_rounding(value: float, rounded: int) -> None:
    assert round_half_up(value) == rounded


def test_smallest_types() -> None:
    assert [smallest_uint(n) for n in (0, 255, 256, 65535, 65536)] == ["uint8"] * 2 + ["uint16"] * 2 + [
        "uint32"
    ]
