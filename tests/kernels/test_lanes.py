"""The lane layout: each pixel has its place, halos come from neighbours, layouts compare as they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.core import ELEMENT_TYPES
from sparseflow.core.codec import dumps, loads
from sparseflow.kernels.layouts.lane import LaneLayout, best_grid, canonical
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.workload import Workload

RNG = np.random.default_rng(0)
QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)
BASE = LaneLayout(2, 7, 9, (4, 4), (2, 3))


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@st.composite
def layouts(draw: st.DrawFn) -> LaneLayout:
    """Layouts whose grid covers the map, with any halo."""
    grid = draw(st.sampled_from([(4, 4), (1, 16), (16, 1), (2, 8), (2, 2)]))
    block = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    height = draw(st.integers(1, grid[0] * block[0]))
    width = draw(st.integers(1, grid[1] * block[1]))
    halo = tuple(draw(st.integers(0, 3)) for _ in range(4))
    fill = draw(st.sampled_from([0.0, float("-inf")]))
    element = draw(st.sampled_from(list(ELEMENT_TYPES.values())))
    return LaneLayout(draw(st.integers(1, 3)), height, width, grid, block, halo, fill, element)  # type: ignore[arg-type]


@QUICK
@given(layout=layouts(), batch=st.integers(1, 2))
def test_unpack_gives_back_what_was_packed(layout: LaneLayout, batch: int) -> None:
    x = _random(batch, layout.channels, layout.height, layout.width)
    packed = layout.pack(x)
    assert packed.shape == (batch, layout.size)
    assert packed.dtype == layout.element.slot
    np.testing.assert_array_equal(layout.unpack(packed), layout.element.rounded(x))


@QUICK
@given(layout=layouts())
def test_each_element_is_the_pixel_its_coordinates_name(layout: LaneLayout) -> None:
    x = layout.element.rounded(_random(1, layout.channels, layout.height, layout.width))
    slots = layout.pack(x).reshape(layout.slots, layout.plane, layout.lanes)
    packed = layout.element.parted(slots, 0, layout.channels)
    (gh, gw), (bh, bw) = layout.grid, layout.block
    for by in range(gh):
        for bx in range(gw):
            for row in range(-layout.halo[0], bh + layout.halo[2]):
                for col in range(-layout.halo[1], bw + layout.halo[3]):
                    h, w = by * bh + row, bx * bw + col
                    inside = 0 <= h < layout.height and 0 <= w < layout.width
                    expected = x[0, :, h, w] if inside else np.full(layout.channels, layout.fill)
                    found = packed[:, layout.position(row, col), by * gw + bx]
                    np.testing.assert_array_equal(found, expected)


def test_positions_outside_the_map_hold_the_fill() -> None:
    layout = replace(BASE, halo=(1, 1, 1, 1), fill=float("-inf"))
    h, w = layout.coordinates()
    assert h.shape == w.shape == (layout.plane, layout.lanes)
    packed = layout.pack(_random(1, 2, 7, 9)).reshape(2, layout.plane, layout.lanes)
    assert np.isneginf(packed[:, h < 0]).all()
    assert np.isfinite(packed[:, h >= 0]).all()
    assert ((h < 0) == (w < 0)).all()


def test_every_pixel_has_one_place_in_the_interior() -> None:
    h, w = BASE.coordinates()
    pixels = sorted(zip(h[h >= 0].tolist(), w[w >= 0].tolist(), strict=True))
    assert pixels == [(i, j) for i in range(7) for j in range(9)]


def test_a_plane_never_aliases_in_the_cache() -> None:
    layout = LaneLayout(4, 32, 32, (4, 4), (8, 8))
    assert layout.rows * layout.cols * layout.lanes * 4 == 4096
    assert layout.plane == 65
    x = _random(2, 4, 32, 32)
    np.testing.assert_array_equal(layout.unpack(layout.pack(x)), x)
    assert BASE.plane == BASE.rows * BASE.cols


def test_ragged_means_that_some_lane_positions_lie_outside() -> None:
    assert BASE.ragged
    assert not LaneLayout(1, 8, 12, (4, 4), (2, 3)).ragged


def test_same_blocks_ignores_halo_channels_and_fill() -> None:
    assert BASE.same_blocks(replace(BASE, halo=(1, 2, 3, 0), channels=9, fill=float("-inf")))
    assert not BASE.same_blocks(replace(BASE, block=(3, 3)))
    assert not BASE.same_blocks(replace(BASE, grid=(2, 8)))
    assert not BASE.same_blocks(replace(BASE, height=8))


@pytest.mark.parametrize(
    ("have", "want", "serves"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), True),
        ((2, 1, 1, 1), (1, 1, 0, 1), True),
        ((1, 1, 1, 0), (1, 1, 1, 1), False),
        ((0, 0, 0, 0), (0, 0, 0, 0), True),
    ],
)
def test_serves_when_no_halo_is_missing(have: tuple[int, ...], want: tuple[int, ...], serves: bool) -> None:
    assert BASE.with_halo(have).serves(BASE.with_halo(want)) is serves  # type: ignore[arg-type]


def test_serves_compares_the_fill_only_where_it_is_read() -> None:
    low = float("-inf")
    even = LaneLayout(1, 8, 12, (4, 4), (2, 3))
    assert replace(even, fill=low).serves(even)
    assert not replace(even, fill=low, halo=(1, 1, 1, 1)).serves(even.with_halo((1, 0, 0, 0)))
    assert not replace(BASE, fill=low).serves(BASE)
    assert not BASE.serves(replace(BASE, block=(3, 3)))


def test_a_producer_fills_a_halo_only_from_direct_neighbours() -> None:
    assert BASE.with_halo((2, 3, 2, 3)).can_fill_halo()
    assert not BASE.with_halo((3, 0, 0, 0)).can_fill_halo()
    assert not BASE.with_halo((0, 0, 0, 4)).can_fill_halo()
    assert not LaneLayout(1, 9, 9, (4, 4), (2, 3)).can_fill_halo()  # 8 rows of blocks, 9 of the map


@QUICK
@given(layout=layouts())
def test_a_layout_survives_its_text(layout: LaneLayout) -> None:
    assert loads(LaneLayout, dumps(layout)) == layout


@QUICK
@given(height=st.integers(1, 120), width=st.integers(1, 120), lanes=st.sampled_from((4, 8, 16)))
def test_the_canonical_layout_covers_the_map_with_few_vectors(height: int, width: int, lanes: int) -> None:
    layout = canonical(3, height, width, lanes)
    (gh, gw), (bh, bw) = layout.grid, layout.block
    assert gh * gw == lanes
    assert gh * bh >= height
    assert gw * bw >= width
    assert (gh, gw) == best_grid(height, width, lanes)
    fewest = min(-(-height // g) * -(-width * g // lanes) for g in (1, 2, 4, 8, 16) if g <= lanes)
    assert bh * bw <= 1.02 * fewest
    assert layout.halo == (0, 0, 0, 0)


@QUICK
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    size=st.integers(9, 24),
)
def test_the_input_layout_holds_every_tap_of_every_output(
    kernel: int, stride: int, dilation: int, padding: tuple[int, int, int, int], size: int
) -> None:
    w = Workload(
        "conv2d",
        1,
        2,
        size,
        size + 1,
        4,
        (kernel, kernel),
        (stride, stride),
        padding,
        (dilation, dilation),
        target=AVX512,
    )
    out = canonical(4, w.out_height, w.out_width, 16)
    need = w.input_layout(out)
    assert need.grid == out.grid
    assert need.block == (out.block[0] * stride, out.block[1] * stride)
    h, w_ = need.coordinates()
    oh, ow = out.coordinates()
    for ky in range(kernel):
        for row in range(out.block[0]):
            for col in range(out.block[1]):
                at = need.position(
                    row * stride + ky * dilation - padding[0], col * stride + ky * dilation - padding[1]
                )
                assert 0 <= at < need.rows * need.cols
                place = out.position(row, col)
                for lane in range(out.lanes):
                    if oh[place, lane] < 0:
                        continue
                    y = oh[place, lane] * stride + ky * dilation - padding[0]
                    x = ow[place, lane] * stride + ky * dilation - padding[1]
                    inside = 0 <= y < w.height and 0 <= x < w.width
                    expected = (y, x) if inside else (-1, -1)
                    assert (h[at, lane], w_[at, lane]) == expected
