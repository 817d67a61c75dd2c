"""Single layers timed: what is cut, what competes, what traffic is counted. No time is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparseflow.core.kernel_speed import Layer
from sparseflow.engine.measure import kernel_timing
from sparseflow.engine.measure.core_limits import fma_probe, read_probe
from sparseflow.engine.measure.kernel_timing import (
    KernelBench,
    cut,
    random_weight,
    sparse_candidates,
    traffic,
    workload_of,
)
from sparseflow.engine.target.machine import cache_bytes
from sparseflow.kernels.target.base import Caches
from sparseflow.kernels.target.cpu import AVX512
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.weight import LayerWeight

LAYER = Layer("3x3 8→12 @9²", "3x3", 8, 12, 9, 9, 3)
LINEAR = Layer("24→36, 40 rows", "linear", 24, 36, 1, 40, op="linear")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelBench:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    return KernelBench(measure=False, rounds=1)


@pytest.mark.parametrize("layer", [LAYER, LINEAR], ids=lambda layer: layer.name)
@pytest.mark.parametrize("structure", ["dense", "block:4x1@0.5", "filter@0.5", "channel@0.5"])
def test_a_run_describes_its_kernel(bench: KernelBench, layer: Layer, structure: str) -> None:
    run = bench.run(layer, structure)
    assert run.time_s > 0
    assert run.dense_s > 0
    assert run.peak_gflops > 0
    assert run.density == (1.0 if structure == "dense" else pytest.approx(0.5))
    smallest = 4 * layer.batch * (layer.channels + layer.filters) * layer.height * layer.width / 2
    assert run.memory_bytes > smallest


def test_dead_filters_and_channels_are_cut_out() -> None:
    weight = random_weight(LAYER, "dense")
    weight[[2, 5]] = 0
    weight[:, [0, 7]] = 0
    smaller, kept = cut(LAYER, weight)
    assert (smaller.filters, smaller.channels) == (10, 6)
    np.testing.assert_array_equal(kept, np.delete(np.delete(weight, [2, 5], 0), [0, 7], 1))


def test_high_densities_are_timed_too(bench: KernelBench) -> None:
    point = bench.point(LAYER, "unstructured@0.1", "curve")
    assert point.structure == "curve"
    assert point.density == pytest.approx(0.9, abs=0.01)
    assert TEMPLATES[point.sparse_kernel.partition("(")[0]].format != "dense"


def test_sparse_candidates_hold_no_dense_kernel() -> None:
    weight = random_weight(LAYER, "block:4x1@0.2")
    found = sparse_candidates(workload_of(LAYER, weight, AVX512))
    assert found
    assert all(TEMPLATES[c.template].format != "dense" for c in found)


def test_traffic_of_a_tap_kernel() -> None:
    layer = replace(LAYER, height=8, width=8)
    weight = random_weight(layer, "block:4x1@0.5")
    workload = workload_of(layer, weight, AVX512)
    core, memory = traffic(
        workload,
        Candidate("taps", {"R": 4, "rows": 1, "V": 2, "chunk": 0}),
        LayerWeight(weight, workload.weight_shape),
    )
    kept, positions = int(np.count_nonzero(weight)), 64
    tiles = positions / (1 * 2 * 16)
    stored = memory - 4 * positions * (layer.channels + layer.filters)
    assert core == pytest.approx(4 * kept / 4 * positions + stored * tiles + 4 * positions * layer.filters)
    assert kept * 4 + kept / 4 * 2 <= stored <= kept * 4 + kept / 4 * 4 + 4 * 100


def test_a_disturbed_run_is_repeated(bench: KernelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([1.0, 2.0, 1.0, 3.0])
    monkeypatch.setattr(
        kernel_timing, "time_interleaved", lambda kernels, rounds: [next(peaks)] * len(kernels)
    )
    bench._highest = 1e9
    times, _ = bench._times([])
    assert times == []
    assert next(peaks, None) is None
    monkeypatch.setattr(kernel_timing, "time_interleaved", lambda kernels, rounds: [5.0, 1e-12])
    times, gflops = bench._times([None])  # type: ignore[list-item]
    assert times == [5.0]
    assert bench._highest == gflops


def test_probes_compute_what_they_claim(bench: KernelBench) -> None:
    fma = fma_probe(bench.target)
    assert fma.seconds(1) > 0
    np.testing.assert_allclose(fma.arguments[1].numpy(), 0.5)  # x = x / 2 + 1/4 has its fixed point there
    read = read_probe(bench.target, 16 << 10)
    assert read.seconds(1) > 0
    assert (
        float(read.arguments[1].numpy().sum()) * 4 == read.work
    )  # each element, a one, is added once a pass
    sizes = cache_bytes(Caches(1, 2, 3))
    assert list(sizes) == sorted(sizes)
