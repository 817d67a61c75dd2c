"""The lane convolutions: candidates that fit the registers, equal shares of work, indices bound to a layout."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from sparseflow.core.formats import TapList
from sparseflow.kernels.lane import direct, taps
from sparseflow.kernels.lane.cost import tile_choices
from sparseflow.kernels.target.cpu import AVX2, AVX512, NEON, Cpu
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Layouts, Workload, covers_of, dense_covers, natural_layouts

RNG = np.random.default_rng(4)
BASE = Workload(
    "conv2d", 1, 32, 28, 28, 48, (3, 3), padding=(1, 1, 1, 1), covers=dense_covers(), target=AVX512
)


def _sparse(w: Workload, density: float, rows: int = 1) -> tuple[Workload, np.ndarray]:
    weight = RNG.standard_normal(w.weight_shape).astype(np.float32)
    keep = RNG.random((w.filters // rows, 1, *w.weight_shape[1:])) < density
    weight *= np.broadcast_to(keep, (w.filters // rows, rows, *w.weight_shape[1:])).reshape(weight.shape)
    return replace(w, covers=covers_of(weight)), weight


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7), (1, 1), (1, 197), (5, 113)])
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("target", [AVX512, AVX2, NEON], ids=lambda t: t.name)
def test_tiles_fit_the_registers_and_the_block(size: tuple[int, int], rows: int, target: Cpu) -> None:
    w = replace(BASE, height=size[0], width=size[1], target=target)
    found = tile_choices(w, rows)
    assert found
    assert len(found) == len(set(found))
    for tile_rows, v in found:
        assert tile_rows >= 1
        assert v >= 1
        assert rows * tile_rows * v <= w.vectors.accumulators
        assert w.vectors.holds(rows, tile_rows * v)


def test_candidates_are_sorted_by_prediction_and_divide_the_filters() -> None:
    sparse, _ = _sparse(BASE, 0.1, rows=4)
    for template, workload in ((taps.Taps(), sparse), (direct.Direct(), BASE)):
        found = template.candidates(workload)
        cycles = [template.predict_cycles(workload, c) for c in found]
        assert cycles == sorted(cycles)
        assert all(workload.filters % c.parameters["R"] == 0 for c in found)
        assert len({c.to_json() for c in found}) == len(found)


def test_wide_blocks_are_offered_only_where_filters_share_taps() -> None:
    blocks, _ = _sparse(BASE, 0.1, rows=4)
    scattered, _ = _sparse(BASE, 0.05)
    assert 4 in {c.parameters["R"] for c in taps.Taps().candidates(blocks)}
    assert 8 not in {c.parameters["R"] for c in taps.Taps().candidates(scattered)}
    assert taps.Taps().candidates(blocks)[0].parameters["R"] >= 4


def test_fewer_weights_are_predicted_to_be_faster() -> None:
    times = []
    for density in (0.05, 0.2, 0.6):
        w, _ = _sparse(BASE, density)
        template = taps.Taps()
        times.append(template.predict_cycles(w, template.candidates(w)[0]))
    assert times == sorted(times)
    dense = direct.Direct().predict_cycles(BASE, direct.Direct().candidates(BASE)[0])
    assert times[0] < dense


def test_rejections_name_the_reason() -> None:
    reason = taps.Taps().rejects(BASE)
    assert reason is not None
    assert "density 1.00" in reason
    few = Workload("linear", 1, 64, 1, 3, 64, covers=((1, 0.1),), target=AVX512)
    assert "3 rows" in str(taps.Taps().rejects(few))
    assert "3 rows" in str(direct.Direct().rejects(few))
    assert direct.Direct().rejects(BASE) is None


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_get_shares_of_about_equal_work(threads: int) -> None:
    w = replace(BASE, threads=threads)
    work = RNG.integers(1, 50, 40).astype(np.float64)
    bounds = direct.Direct().partition(w, Candidate("direct"), work)["bounds"]
    assert bounds.dtype == np.int32
    assert bounds[0] == 0
    assert bounds[-1] == len(work)
    assert (np.diff(bounds) >= 0).all()
    shares = np.array([work[a:b].sum() for a, b in itertools.pairwise(bounds)])
    assert np.abs(shares - work.sum() / threads).max() <= 2 * work.max()


def test_one_thread_needs_no_bounds() -> None:
    assert direct.Direct().partition(BASE, Candidate("direct"), np.ones(4)) == {}


@pytest.mark.parametrize("chunk", [0, 16])
def test_bound_offsets_are_the_taps_places_in_the_input(chunk: int) -> None:
    w, weight = _sparse(replace(BASE, dilation=(2, 1), padding=(2, 1, 2, 1)), 0.1)
    layouts = natural_layouts(w)
    layout = layouts.input
    assert layout is not None
    candidate = Candidate("taps", {"R": 1, "rows": 1, "V": 1, "chunk": chunk})
    packed = taps.Taps().pack(w, candidate, LayerWeight(weight, w.weight_shape), layouts)
    index = TapList(rows=1, chunk=chunk or None).encode(weight).arrays
    channel, position = np.divmod(index["indices"], 9)
    ky, kx = np.divmod(position, 3)
    first = channel // chunk * chunk if chunk else 0
    expected = (channel - first) * layout.plane + 2 * ky * layout.cols + kx
    assert packed["offsets"].dtype == np.uint16
    np.testing.assert_array_equal(packed["offsets"], expected)
    np.testing.assert_array_equal(packed["indptr"], index["indptr"])
    assert len(packed["data"]) == np.count_nonzero(weight)
    assert list(packed) == ["indptr", "offsets", "data"]


def test_offsets_of_groups_start_at_the_groups_channels() -> None:
    w = replace(BASE, groups=4, covers=((1, 1.0), (2, 1.0), (4, 1.0), (8, 1.0), (16, 1.0)))
    weight = np.ones(w.weight_shape, np.float32)
    layouts = natural_layouts(w)
    assert layouts.input is not None
    candidate = Candidate("taps", {"R": 4, "rows": 1, "V": 1, "chunk": 0})
    packed = taps.Taps().pack(w, candidate, LayerWeight(weight, w.weight_shape), layouts)
    block = np.repeat(np.arange(12), np.diff(packed["indptr"]))
    channel = packed["offsets"] // layouts.input.plane
    np.testing.assert_array_equal(channel // 8, block // 3)


def test_dense_packing_keeps_every_weight_once() -> None:
    weight = np.arange(math.prod(BASE.weight_shape), dtype=np.float32).reshape(BASE.weight_shape)
    for candidate in direct.Direct().candidates(BASE):
        packed = direct.Direct().pack(BASE, candidate, LayerWeight(weight, BASE.weight_shape), Layouts())
        np.testing.assert_array_equal(np.sort(packed["data"]), weight.reshape(-1))
