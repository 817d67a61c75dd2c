"""Changes of layout against `LaneLayout.pack` and `unpack`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparseflow.core import BFLOAT16, ELEMENT_TYPES, FLOAT32, ElementType
from sparseflow.kernels.lane import conversions as relayout
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from tests.kernels.conftest import NEEDS_PAIRS

RNG = np.random.default_rng(1)
MAPS = [(3, 7, 9), (1, 1, 1), (5, 14, 14), (2, 17, 4), (18, 8, 8)]
HALOS = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 3, 1)]


def _layouts(shape: tuple[int, int, int]) -> list[LaneLayout]:
    base = canonical(*shape, 16)
    return [replace(base, halo=h, fill=f) for h in HALOS for f in (0.0, float("-inf"))]


def _used(y: np.ndarray, layout: LaneLayout) -> np.ndarray:
    """Without the vector that only separates planes."""
    return y.reshape(len(y), layout.slots, layout.plane, layout.lanes)[:, :, : layout.rows * layout.cols]


@pytest.mark.parametrize("threads", [1, 2])
def test_maps_to_lanes_and_back(threads: int, compile_kernels: Any) -> None:
    functions, runs = {}, []
    for shape in MAPS:
        for layout in _layouts(shape):
            i, strides = len(runs), Strides.nchw(*shape[1:])
            functions[f"to{i}"] = relayout.to_lanes(2, strides, layout, threads, f"to{i}")
            functions[f"from{i}"] = relayout.from_lanes(2, layout, strides, threads, f"from{i}")
            runs.append((i, shape, layout, strides))
    kernels = compile_kernels(functions)
    for i, shape, layout, strides in runs:
        x = RNG.standard_normal((2, *shape)).astype(np.float32)
        lanes = kernels(f"to{i}", [x.reshape(2, -1), relayout.lane_table(layout, strides)], (2, layout.size))
        np.testing.assert_array_equal(_used(lanes, layout), _used(layout.pack(x), layout))
        back = kernels(f"from{i}", [lanes, relayout.plain_table(layout)], (2, shape[0] * shape[1] * shape[2]))
        np.testing.assert_array_equal(back.reshape(x.shape), x)


@pytest.mark.parametrize("threads", [1, 2])
def test_matrices_to_lanes_and_back(threads: int, compile_kernels: Any) -> None:
    functions, runs = {}, []
    for rows, features in [(1, 5), (13, 16), (197, 33), (40, 1)]:
        layout, strides, i = canonical(features, 1, rows, 16), Strides.matrix(features), len(runs)
        functions[f"to{i}"] = relayout.to_lanes(1, strides, layout, threads, f"to{i}")
        functions[f"from{i}"] = relayout.from_lanes(1, layout, strides, threads, f"from{i}")
        runs.append((i, rows, features, layout, strides))
    kernels = compile_kernels(functions)
    for i, rows, features, layout, strides in runs:
        x = RNG.standard_normal((rows, features)).astype(np.float32)
        lanes = kernels(f"to{i}", [x.reshape(1, -1), relayout.lane_table(layout, strides)], (1, layout.size))
        np.testing.assert_array_equal(
            _used(lanes, layout), _used(layout.pack(x.T.reshape(1, features, 1, rows)), layout)
        )
        back = kernels(f"from{i}", [lanes, relayout.plain_table(layout)], (1, rows * features))
        np.testing.assert_array_equal(back.reshape(rows, features), x)


@pytest.mark.parametrize("element", ELEMENT_TYPES.values(), ids=str)
def test_maps_of_any_type_change_their_blocks(element: ElementType, compile_kernels: Any) -> None:
    source = replace(canonical(5, 7, 9, 16, element), halo=(1, 1, 1, 1), fill=float("-inf"))
    target = LaneLayout(5, 7, 9, (16, 1), (1, 9), (1, 0, 1, 2), element=element)
    x = RNG.standard_normal((2, 5, 7, 9))
    kernels = compile_kernels({"to": relayout.to_lanes(2, source, target, 1, "to")})
    y = kernels("to", [source.pack(x), relayout.lane_table(target, source)], (2, target.size), element.slot)
    np.testing.assert_array_equal(_used(y, target), _used(target.pack(x), target))


@NEEDS_PAIRS
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_maps_change_their_type(channels: int, threads: int, compile_kernels: Any) -> None:
    wide = replace(canonical(channels, 7, 9, 16), halo=(1, 1, 1, 1), fill=float("-inf"))
    narrow = replace(wide, element=BFLOAT16)
    x = RNG.standard_normal((2, channels, 7, 9))
    kernels = compile_kernels(
        {
            "to": relayout.retype(2, wide, BFLOAT16, threads, "to"),
            "back": relayout.retype(2, narrow, FLOAT32, threads, "back"),
        }
    )
    y = kernels("to", [wide.pack(x)], (2, narrow.size), "int32")
    np.testing.assert_array_equal(_used(y, narrow), _used(narrow.pack(x), narrow))
    back = kernels("back", [y], (2, wide.size))
    np.testing.assert_array_equal(_used(back, wide), _used(wide.pack(BFLOAT16.rounded(x)), wide))


def test_lanes_to_lanes_with_other_blocks_halos_and_fills(compile_kernels: Any) -> None:
    shape = (3, 15, 13)
    sources = _layouts(shape)[:3]
    targets = [
        LaneLayout(*shape, (4, 4), (4, 4), (1, 1, 1, 1)),
        LaneLayout(*shape, (2, 8), (8, 2), (0, 2, 5, 0), float("-inf")),
        LaneLayout(*shape, (16, 1), (1, 13)),
        LaneLayout(*shape, (4, 4), (3, 3), (4, 4, 4, 4)),  # the halo reaches beyond the neighbour's block
    ]
    pairs = [(s, t) for s in sources for t in targets]
    kernels = compile_kernels(
        {f"k{i}": relayout.to_lanes(2, s, t, 1, f"k{i}") for i, (s, t) in enumerate(pairs)}
    )
    x = RNG.standard_normal((2, *shape)).astype(np.float32)
    for i, (source, target) in enumerate(pairs):
        table = relayout.lane_table(target, source)
        y = kernels(f"k{i}", [source.pack(x), table], (2, target.size))
        np.testing.assert_array_equal(_used(y, target), _used(target.pack(x), target))


def test_tables_point_inside_the_channel() -> None:
    layout = canonical(4, 9, 11, 16).with_halo((1, 1, 1, 1))
    table = relayout.lane_table(layout, Strides.nchw(9, 11))
    assert table.shape == (layout.plane * layout.lanes,)
    assert table.min() == -1
    assert table.max() == 9 * 11 - 1
    plain = relayout.plain_table(layout)
    assert len(set(plain.tolist())) == 9 * 11
    assert 0 <= plain.min() <= plain.max() < layout.rows * layout.cols * layout.lanes
