"""Each command on a small network: what it prints, writes and returns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparseflow import Engine, __version__
from sparseflow.cli.main import app
from tests.cli.conftest import Files, Outcome

Invoke = Callable[..., Outcome]
COMMANDS = ["quickstart", "prune", "sweep", "tune", "compile", "explain", "bench", "inspect", "report"]


def test_help_lists_every_command_and_each_teaches_by_examples(invoke: Invoke) -> None:
    listing = invoke("--help")
    assert listing.code == 0
    assert [c.name for c in app.registered_commands] == COMMANDS
    for name in COMMANDS:
        assert name in listing.out
        page = invoke(name, "--help")
        assert page.code == 0
        assert "Examples" in page.out
        assert f"sparseflow {name}" in page.out


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").out.strip() == f"sparseflow {__version__}"


def test_inspect_reports_structure_density_and_bytes(invoke: Invoke, files: Files) -> None:
    done = invoke("inspect", files.pt2, "--sparsify", "block:4x1@0.75", "--json", "-")
    assert done.code == 0
    data = json.loads(done.out)
    assert data["sparsify"] == "block:4x1@0.75 (one-shot magnitude, not retrained)"
    stem, body, head = data["layers"]
    assert (stem["role"], body["role"], head["role"]) == ("stem", "", "classifier")
    assert (stem["structure"], body["structure"]) == ("dense", "block:4x1")
    assert body["shape"] == [16, 8, 3, 3]
    assert body["density"] == 0.25
    formats = {row["format"]: row for row in body["storage"]}
    assert formats["dense"]["value_bytes"] == 16 * 8 * 9 * 4
    assert formats["bsr(4x1)"]["value_bytes"] == 16 * 8 * 9 * 4 // 4
    assert formats["bsr(4x1)"]["index_bytes"] > 0
    assert (data["kernels"]["bsr"], data["kernels"]["fkw"]) == ([], ["patterns"])


def test_inspect_table_says_why_layers_stay_dense(invoke: Invoke, files: Files) -> None:
    done = invoke("inspect", files.onnx, "--sparsify", "unstructured@0.5")
    assert "not pruned, stem stays dense unless included: stem" in done.out
    assert "not pruned, classifier stays dense unless included: head" in done.out
    one = invoke("inspect", files.onnx, "--sparsify", "unstructured@0.5", "--layer", "body.weight")
    assert "bitmap" in one.out
    assert "csr" in one.out
    assert "no kernel" in one.out
    assert "few-rows-taps" in one.out


def test_compile_writes_an_engine_that_explain_reads(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    listed = invoke("explain", files.engine)
    assert listed.code == 0
    assert "sparsified: block:4x1@0.75 (one-shot magnitude, not retrained)" in listed.out
    assert "taps" in listed.out
    report = tmp_path / "plan.json"
    assert invoke("explain", files.engine, "--json", report).code == 0
    layers = {layer["name"]: layer for layer in json.loads(report.read_text())["layers"]}
    assert len(layers) == 3
    body = layers["body.weight"] if "body.weight" in layers else layers["body"]
    assert body["structure"] == "block:4x1"
    assert body["density"] == 0.25
    detail = invoke("explain", files.engine, "--layer", "body")
    assert "← chosen" in detail.out
    assert "predicted" in detail.out
    timed = invoke("explain", files.engine, "--profile", "--json", "-")
    assert sum(o["share"] for o in json.loads(timed.out)["operators"]) == pytest.approx(1, abs=0.05)


def test_compile_of_an_onnx_file_with_a_bound_batch(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "two.engine"
    done = invoke("compile", files.onnx, "--shape", "image=2,3,8,8", "--no-measure", "-o", out, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["engine"] == str(out)
    engine = Engine.load(out)
    assert engine.inputs[0].shape == (2, 3, 8, 8)
    assert engine(np.ones((2, 3, 8, 8), "float32")).shape == (2, 5)


def test_bench_writes_what_the_readme_says(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    arguments = ("--against", "torch,onnxruntime", "--rounds", 1, "--no-measure", "--json", path)
    done = invoke("bench", files.onnx, "--shape", "image=1,3,8,8", "--sparsify", "nm:2:4", *arguments)
    assert done.code == 0, done.err
    assert "torch left out: peer torch: cannot run the ONNX model" in " ".join(done.out.split())
    data = json.loads(path.read_text())
    assert data["kind"] == "bench"
    assert data["sparsify"] == "nm:2:4"
    assert data["threads"] == 1
    assert [r["engine"] for r in data["results"]] == ["sparseflow", "onnxruntime"]
    for row in data["results"]:
        assert set(row["latency_ms"]) == {"median", "p10", "p90", "min"}
        assert 0 < row["latency_ms"]["min"] <= row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
        assert row["max_relative_error"] < 1e-4
    ours, peer = (r["latency_ms"]["median"] for r in data["results"])
    assert data["speedup_vs_best_peer"] == pytest.approx(peer / ours)
    page = tmp_path / "page.html"
    shown = invoke("report", path, "-o", page)
    assert shown.code == 0, shown.err
    assert "onnxruntime" in page.read_text()


def test_zoo_models_are_listed(invoke: Invoke) -> None:
    done = invoke("inspect", "zoo:mobilenet_v2", "--json", "-")
    assert len(json.loads(done.out)["layers"]) == 53


RECIPE = """
name = "one shot"

[data]
name = "mnist5k"
batch_size = 64

[model]
name = "mnist_cnn"

[[rules]]
layers = "features.*"
sparsify = "block:4x1@0.75"

[[stages]]
kind = "magnitude"
"""


def test_prune_writes_a_model_that_inspect_and_report_read(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run = tmp_path / "run"
    done = invoke("prune", tmp_path / "recipe.toml", "-o", run, "--csv", tmp_path / "log.csv")
    assert done.code == 0, done.err
    assert (tmp_path / "log.csv").read_text().startswith("stage,epoch,learning_rate,loss")
    assert str(run / "model.pt2") in done.out.replace("\n", "")
    layers = json.loads(invoke("inspect", run / "model.pt2", "--json", "-").out)["layers"]
    assert "block:4x1" in {layer["structure"] for layer in layers}
    shown = invoke("report", run)
    assert shown.code == 0, shown.err
    assert (run / "report.html").is_file()
