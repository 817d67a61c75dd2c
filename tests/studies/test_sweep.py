"""A sweep: cells from one file, trained apart, resumed, compiled, in a table and a plot."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparseflow.core.codec import decode, encode
from sparseflow.core.plan import Measurement
from sparseflow.errors import InputError, RecipeError, SparseflowError
from sparseflow.report import build_document
from sparseflow.report.document import Scatter
from sparseflow.report.markdown import to_markdown
from sparseflow.studies.results import Environment
from sparseflow.studies.stages import StageEvent
from sparseflow.studies.sweep import SweepOptions, run_sweep
from sparseflow.studies.sweep_plan import load_sweep
from sparseflow.studies.sweep_results import CellResult, EngineFigures, SweepResult

SWEEPS = sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.toml"))

SMALL = """
name = "small"
[recipe]
seed = 1
threads = 1
data = {name = "mnist5k", batch_size = 500}
model = {name = "mnist_cnn", arguments = {widths = [4, 8]}}
stages = [{kind = "dense", epochs = 1, learning_rate = 0.05}]
[methods.magnitude]
stages = [{kind = "magnitude"}, {kind = "retrain", epochs = 2, learning_rate = 0.05}]
[methods.admm]
stages = [{kind = "admm", epochs = 1, learning_rate = 0.05}]
[[structures]]
name = "2:4"
aim = 50.0
rules = [{layers = "features.*", sparsify = "nm:2:4"}]
[[structures]]
name = "half"
methods = ["magnitude"]
rules = [{layers = "features.*", sparsify = "filter@0.5"}]
"""


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Any]:
    def make(text: str = SMALL) -> Any:
        path = tmp_path / "small.toml"
        path.write_text(text)
        return load_sweep(path)

    return make


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_sweeps_of_the_repository_load(path: Path) -> None:
    sweep = load_sweep(path)
    assert all(stage.kind == "dense" for stage in sweep.dense.stages)
    last = len(sweep.dense.stages) - 1
    for cell in sweep.cells:
        assert cell.recipe.fingerprint(last) == sweep.dense.fingerprint(
            last
        )  # so that one dense run serves all
        assert cell.aim is not None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[methods.admm]", "[method.admm]", r"small\.toml: method: unknown key"),
        ('methods = ["magnitude"]', 'methods = ["rigl"]', r"structures\[1\]\.methods: no \[methods\.rigl\]"),
        ("nm:2:4", "brick:2", r"cell 'magnitude, 2:4': rules\[0\]\.sparsify: .*brick"),
        ('name = "half"', 'name = "2-4"', r"two cells are named 'magnitude-2-4'"),
        ("seed = 1", "sead = 1", r"recipe: sead: unknown key"),
        ("aim = 50.0", 'aim = "small"', r"structures\[0\]\.aim: found 'small'"),
    ],
)
def test_errors_name_the_place(small: Callable[..., Any], old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        small(SMALL.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_stopped_sweep_goes_on_and_keeps_finished_cells(small: Callable[..., Any], tmp_path: Path) -> None:
    out, events = tmp_path / "out", []
    with pytest.raises(SparseflowError, match=r"dense network .* is not finished"):
        run_sweep(small(), out, options=SweepOptions(minutes=0, measure=False))
    first = run_sweep(small(), out, options=SweepOptions(measure=False), progress=events.append)
    assert [c.name for c in first.cells] == ["magnitude-2-4", "admm-2-4", "magnitude-half"]
    assert first.pending == ()
    assert [c.epochs for c in first.cells] == [2, 1, 2]
    written = {p: p.stat().st_mtime_ns for p in out.glob("cells/*/model.pt")}
    (out / "cells" / "magnitude-half" / "results.json").unlink()
    events.clear()
    again = run_sweep(small(), out, options=SweepOptions(measure=False, minutes=5), progress=events.append)
    assert {e.name: e.status for e in events if isinstance(e, StageEvent)} == {
        "dense": "kept",
        "magnitude-2-4": "kept",
        "admm-2-4": "kept",
        "magnitude-half": "done",
    }
    assert again.cells == first.cells
    kept = [p for p, t in written.items() if p.stat().st_mtime_ns == t]
    assert len(kept) == 2
    assert "retrain 2/2" in (out / "cells" / "magnitude-half" / "log.txt").read_text()


def test_out_of_time_leaves_cells_pending(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = tmp_path / "out" / "cells" / "magnitude-2-4" / "running-3-retrain.ckpt"
    start = time.time()
    monkeypatch.setattr("sparseflow.studies.sweep.time.time", lambda: start + 3600 * running.exists())
    events: list[Any] = []
    options = SweepOptions(minutes=5, measure=False)
    result = run_sweep(small(), tmp_path / "out", options=options, progress=events.append)
    assert result.cells == ()
    assert len(result.pending) == 3
    assert "0 of 3 cells trained" in build_document(encode(result)).headline
    said = [e.detail for e in events if isinstance(e, StageEvent) and e.detail]
    assert said == ["stopped: out of time after retrain 1/2", *["stopped: no time left to begin"] * 2]


def test_a_failed_cell_leaves_the_others(small: Callable[..., Any], tmp_path: Path) -> None:
    text = SMALL.replace('layers = "features.*", sparsify = "nm', 'layers = "neck.*", sparsify = "nm')
    events: list[Any] = []
    options = SweepOptions(measure=False)
    result = run_sweep(small(text), tmp_path / "out", options=options, progress=events.append)
    assert [cell.name for cell in result.cells] == ["magnitude-half"]
    assert any("failed: rule 'neck.*'" in e.detail for e in events if isinstance(e, StageEvent))


@pytest.mark.slow
def test_two_processes_and_engines(small: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path / "cache"))
    options = SweepOptions(jobs=2, rounds=1, kernels_measured=False)
    result = run_sweep(small(), tmp_path / "out", options=options)
    for cell in (result.dense, *result.cells):
        assert cell.engine is not None
        assert cell.engine.accuracy == pytest.approx(cell.accuracy, abs=2e-3)
        assert cell.engine.latency.median_s > 0
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert decode(SweepResult, stored) == result


@pytest.mark.slow
def test_a_ray_cluster_trains_the_same_cells(small: Callable[..., Any], tmp_path: Path) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        options = SweepOptions(jobs=2, ray=address, measure=False)
        spread = run_sweep(small(), tmp_path / "ray", options=options)
    finally:
        ray.shutdown()
    here = run_sweep(small(), tmp_path / "here", options=SweepOptions(measure=False))
    assert [c.accuracy for c in spread.cells] == [c.accuracy for c in here.cells]


@pytest.mark.slow
def test_the_reduced_sweep_keeps_its_accuracy(tmp_path: Path) -> None:
    (path,) = (p for p in SWEEPS if p.stem == "mnist5k")
    result = run_sweep(load_sweep(path), tmp_path, options=SweepOptions(jobs=2, measure=False))
    assert result.dense.accuracy > 0.97
    for cell in result.cells:
        assert result.reached(cell), f"{cell.name}: {result.points_lost(cell):.2f} points lost"


def figures(ms: float, macs: int) -> EngineFigures:
    return EngineFigures(
        0.9, 1e-6, Measurement(ms / 1e3, ms / 1.1e3, ms / 0.9e3, ms / 1.2e3, 9, 1, "cpu"), macs
    )


def test_the_report_has_the_table_and_the_front() -> None:
    cells = (
        CellResult("a", "admm", "pattern, 8x", 0.918, 6, 600, 8.06, 0.5, figures(0.4, 20)),
        CellResult("b", "magnitude", "2:4", 0.90, 4, 400, 1.9, 0.2, figures(0.8, 50)),
        CellResult("c", "magnitude", "half", 0.91, 4, 400, 1.9),
    )
    dense = CellResult("dense", "dense", "dense", 0.922, 14, 1400, 1.0, None, figures(1.0, 100))
    environment = Environment("cpu", {"torch": "2"}, "", "now", 1, 1)
    result = SweepResult("CIFAR-10", dense, cells, ("d",), environment)
    assert [c.name for c in result.pareto] == ["a", "dense"]
    assert [result.reached(c) for c in cells] == [True, False, None]
    document = build_document(encode(result))
    text = to_markdown(document).replace("\u00a0", " ")
    for wanted in (
        "3 of 4 cells",
        "1 of 2 keep",
        "−0.40",
        "✓ (≥ −0.50)",
        "✗ (≥ −0.20)",
        "2.50×",
        "20.0 %",
        "yet: d.",
    ):
        assert wanted in text
    (plot,) = [f for f in document.figures() if isinstance(f, Scatter)]
    assert len(plot.points) == 3
    lone = dataclasses.replace(result, cells=(), dense=dataclasses.replace(dense, engine=None))
    assert "Pareto" not in [section.title for section in build_document(encode(lone)).sections]


def test_options_and_clusters_that_are_not_there(small: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs=0"):
        SweepOptions(jobs=0)
