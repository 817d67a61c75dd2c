"""Rates, bounds and break-even points of kernel records, and that records survive a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparseflow.core.codec import encode
from sparseflow.core.kernel_speed import KernelRun, Layer, Limits, SpeedPoint
from sparseflow.errors import SparseflowError
from sparseflow.studies.kernel_results import (
    KernelResults,
    PublishedPoint,
    break_even_sparsity,
    network_speedup,
)
from sparseflow.studies.records import Records
from sparseflow.studies.results import read

LAYER = Layer("3x3 8→4 @10²", "3x3", 8, 4, 10, 10, 3)
LIMITS = Limits("cpu", 100.0, 200.0, 100.0, 40.0, 10.0, (1000, 10_000, 100_000))


def run(structure: str = "block:4x1@0.9", core: float | None = 9_600.0, memory: float = 500.0) -> KernelRun:
    """0.1 of 57,600 FLOPs in 0.1 µs: 57.6 GFLOP/s, beside a peak of 96."""
    return KernelRun(LAYER, structure, 0.1, "taps", {"R": 4}, 1e-7, 8e-7, "direct", 96.0, core, memory)


def point(sparsity: float, speedup: float) -> SpeedPoint:
    return SpeedPoint(LAYER, "unstructured", 1 - sparsity, 1e-3 / speedup, 1e-3, "taps", "direct")


def test_rates_are_of_useful_work() -> None:
    assert LAYER.flops == 2 * 4 * 8 * 9 * 100
    r = run()
    assert r.useful_gflops == pytest.approx(57.6)
    assert r.efficiency == pytest.approx(0.6)
    assert r.dense_equivalent_gflops == pytest.approx(576)
    assert r.speedup == pytest.approx(8)
    assert r.core_intensity == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("core", "memory", "expected"),
    [
        (9_600.0, 500.0, (100.0, "FMA")),  # 0.6 FLOP/B at the core: 120 GFLOP/s from L1
        (14_400.0, 500.0, (80.0, "L1")),
        (None, 5_760.0, (100.0, "FMA")),  # 1 FLOP/B from L2
        (None, 57_600.0, (4.0, "L3")),
        (None, 576_000.0, (0.1, "DRAM")),
    ],
)
def test_the_roofline_is_the_lowest_bound(
    core: float | None, memory: float, expected: tuple[float, str]
) -> None:
    bound, by = run(core=core, memory=memory).bound(LIMITS)
    assert (bound, by) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.2, 0.5), (0.4, 0.9), (0.6, 1.1), (0.8, 2.0)], 0.5),
        ([(0.2, 1.2), (0.4, 0.9), (0.8, 1.3)], 0.5),  # a single point above 1 before a loss does not count
        ([(0.0, 1.0), (0.5, 2.0)], 0.0),
        ([(0.5, 0.4), (0.9, 0.9)], None),
        ([], None),
    ],
)
def test_break_even_is_the_last_crossing(points: list[tuple[float, float]], expected: float | None) -> None:
    found = break_even_sparsity(point(s, x) for s, x in reversed(points))
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_network_weighs_its_layers() -> None:
    once = PublishedPoint("pr", 0.9, None, SpeedPoint(LAYER, "b", 0.1, 1.0, 4.0, "", ""), "net", 1)
    thrice = PublishedPoint("pr", 0.9, None, SpeedPoint(LAYER, "b", 0.1, 1.0, 2.0, "", ""), "net", 3)
    assert network_speedup([once, thrice]) == pytest.approx((4 + 6) / (1 + 3))


def test_records_are_read_back_as_they_were() -> None:
    results = KernelResults("cpu", LIMITS, {"a": run()}, "python x")
    assert read(KernelResults, json.loads(json.dumps(encode(results))), "x.json") == results
    broken = encode(results)
    del broken["cases"]["a"]["time_s"]
    with pytest.raises(SparseflowError, match=r"x\.json: cases\['a'\]\.time_s: missing"):
        read(KernelResults, broken, "x.json")


def test_a_stopped_run_is_resumed(tmp_path: Path) -> None:
    path, head, said = tmp_path / "r.json", {"machine": "cpu"}, []
    done: list[str] = []

    def case(name: str, fails: bool = False) -> tuple[str, object]:
        def measure() -> dict[str, object]:
            if fails:
                raise SparseflowError("does not fit")
            done.append(name)
            return {"name": name}

        return name, measure

    assert Records(path, head).run([case("a"), case("b", fails=True)], said.append) == 1  # type: ignore[list-item]
    assert json.loads(path.read_text())["cases"] == {"a": {"name": "a"}}
    assert any("does not fit" in line for line in said)
    again = Records(path, head, resume=True)
    assert again.run([case("a"), case("b"), case("c")], said.append) == 0  # type: ignore[list-item]
    assert done == ["a", "b", "c"]
    assert Records(path, head, resume=True).run([case("d")], said.append, minutes=0.0) == 0  # type: ignore[list-item]
    assert "1 cases left" in said[-1]
    assert list(json.loads(path.read_text())["cases"]) == ["a", "b", "c"]
    with pytest.raises(SparseflowError, match="measured on cpu, not on other"):
        Records(path, {"machine": "other"}, resume=True)
