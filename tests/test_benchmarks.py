"""The benchmark scripts: what they write, and that a failed case is reported and leaves the others."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from sparseflow.core.codec import encode
from sparseflow.core.plan import CandidateTime, LayerPlan, Plan, RestTime
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.train.models import MnistCnn
from tests.kernels.conftest import NEEDS_PAIRS, NEEDS_QUADS

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks"


@dataclass(frozen=True)
class Loaded:
    """A small model where a script loads one of the zoo."""

    model: nn.Module
    shape: tuple[int, ...]

    def imported(self) -> Imported:
        return import_model(self.model, (torch.zeros(self.shape),))


@pytest.fixture(scope="module")
def whole_networks() -> Iterator[ModuleType]:
    yield from script("whole_networks")


def script(name: str) -> Iterator[ModuleType]:
    """The script as a module, found as it is when it is run: beside the others."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def kernel_script(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path / "cache"))
    yield from script(request.param)


def record(ours_ms: float, peer_ms: float, sparsify: str | None) -> dict[str, Any]:
    rows = (("sparseflow", ours_ms, 2e-6), ("onnxruntime", peer_ms, 0.0))
    return {
        "model": "zoo:resnet50",
        "sparsify": sparsify,
        "threads": 1,
        "machine": "CPU",
        "results": [
            {"engine": name, "latency_ms": {"median": ms}, "max_relative_error": error}
            for name, ms, error in rows
        ],
        "speedup_vs_best_peer": peer_ms / ours_ms,
        "versions": {"sparseflow": "1", "onnxruntime": "2"},
        "plan": {
            "target": "llvm",
            "layers": {"a": ["direct", ours_ms * 0.4], "b": ["taps", ours_ms * 0.3]},
            "rest": {"pool": [2, ours_ms * 0.1]},
        },
    }


def test_table(whole_networks: ModuleType) -> None:
    lines = whole_networks.markdown([record(40, 44, None), record(10, 44, "block:4x1@0.9")]).splitlines()
    assert lines[0].startswith("| model | weights | threads | sparseflow | onnxruntime | × best dense")
    assert lines[2] == "| resnet50 | dense | 1 | 40.00 ms | 44.00 ms | **1.10×** | – | 90% (20%) | 2e-06 |"
    wanted = (
        "| resnet50 | block:4x1@0.9 | 1 | 10.00 ms | 44.00 ms | **4.40×** ✗ (≥ 6×) | – | 90% (20%) | 2e-06 |"
    )
    assert lines[3] == wanted
    assert "seeded random" in lines[-1]
    assert [whole_networks.target("vgg16", s) for s in (None, "block:4x1@0.9", whole_networks.PATTERN)] == [
        None,
        3.6,
        2,
    ]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_the_summary_has_a_row_for_each_model(whole_networks: ModuleType) -> None:
    lines = whole_networks.summary([record(40, 44, None), record(10, 44, "block:4x1@0.9")]).splitlines()
    assert lines[0] == "| model | dense | block:4x1@0.9 |"
    assert lines[2] == "| resnet50 | 40.00 ms, **1.10×** | 10.00 ms, **4.40×** |"


def test_records_keep_what_the_table_reads(whole_networks: ModuleType, tmp_path: Path) -> None:
    candidate = CandidateTime("taps", {"R": 4}, 2e-3, True)
    layer = LayerPlan(
        "a", "linear", (4, 4), (1, 4), "Dense", 1.0, "dense", 64, 0, 1, 1, 16, 16, candidate, (candidate,) * 9
    )
    rest = (RestTime("pool", 2, 5e-4),)
    whole = record(10, 44, None) | {"plan": encode(Plan((layer,), "llvm", 1, True, rest=rest))}
    small = whole_networks.slim(whole)
    assert small["plan"] == {
        "target": "llvm",
        "layers": {"a": ["taps(R=4)", 2.0]},
        "rest": {"pool": [2, 0.5]},
    }
    assert "| 30% (10%) |" in whole_networks.markdown([small])
    path = tmp_path / "records.json"
    whole_networks.write(path, {"one": small, "two": small})
    assert json.loads(path.read_text()) == {"one": small, "two": small}
    assert len(path.read_text().splitlines()) == 2 + 2 * (2 + len(small))


def test_a_plan_without_the_rest_says_so(whole_networks: ModuleType) -> None:
    one = record(10, 44, None)
    one["plan"]["rest"] = {}
    assert "| layers 70% |" in whole_networks.markdown([one])


def test_a_failed_case_is_counted_and_told(
    whole_networks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"resnet50 none 1": record(40, 44, None)}
    (tmp_path / "whole_networks.json").write_text(json.dumps(kept))
    arguments = ["--models", "resnet50,alexnet", "--sparsify", "none", "--out", str(tmp_path), "--resume"]
    assert whole_networks.main(arguments) == 1
    printed = capsys.readouterr()
    assert "unknown zoo model 'alexnet'" in printed.err
    assert "| resnet50 | dense |" in printed.out
    assert json.loads((tmp_path / "whole_networks.json").read_text()) == kept


def test_sparse_peers_do_not_count_as_dense(whole_networks: ModuleType) -> None:
    one = record(10, 44, "unstructured@0.9")
    one["results"].append({"engine": "mnn-sparse", "latency_ms": {"median": 20}, "max_relative_error": 0.0})
    assert "**4.40×** ✓ (≥ 3.8×) | **2.00×** |" in whole_networks.markdown([one])
    vgg = record(10, 30, "unstructured@0.9") | {"model": "zoo:vgg16"}
    vgg["results"].append({"engine": "openvino", "latency_ms": {"median": 42}, "max_relative_error": 0.0})
    assert "**2.00×** ✗ (≥ 2.1×)" in whole_networks.markdown([vgg])  # 42 / 2.1 is less than 30


def test_torch_is_left_to_dense_rows(whole_networks: ModuleType) -> None:
    dense = whole_networks.peers_for(whole_networks.Case("resnet50", "none", 1)).split(",")
    sparse = whole_networks.peers_for(whole_networks.Case("resnet50", "unstructured@0.9", 1)).split(",")
    assert {"torch", "onnxruntime", "openvino"} <= set(dense)
    assert "torch" not in sparse
    assert "mnn-sparse" not in dense


CALLS = {
    "kernels": (["--layers", "1x1 2048", "--structures", "dense,block:4x1@0.9"], 2),
    "break_even": (["--layers", "1 row", "--structures", "block:4x1", "--sparsities", "0.1,0.9"], 2),
    "feature_maps": (["--layers", "@56", "--structures", "block:64x1@0.9"], 1),
    "published": (["--only", "8065", "--layers", "1x1 320→1280"], 6),
    "streams": (["--model", "resnet18", "--image-size", "32", "--fractions", "0.1", "--thresholds", "0"], 3),
}


@pytest.mark.parametrize(
    "kernel_script",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "streams" else []) for name in CALLS],
    indirect=True,
)
def test_a_kernel_benchmark_from_records_to_docs(
    kernel_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = kernel_script.NAME
    arguments, count = CALLS[name]
    call = [*arguments, "--no-measure", "--rounds", "1", "--out", str(tmp_path / "results")]
    assert kernel_script.main(call) == 0
    path = tmp_path / "results" / f"{name}.json"
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) == count
    assert kernel_script.main([*call, "--resume"]) == 0  # nothing is left to do
    assert json.loads(path.read_text())["cases"] == cases
    assert f"{count} records" in capsys.readouterr().err

    sections = {
        "kernels": "efficiency",
        "break_even": "curves",
        "published": "network",
        "feature_maps": "both",
        "streams": "reach",
    }
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "page.md"
    block = f"<!-- begin {name}.json {sections[name]} -->\nold\n<!-- end -->"
    page.write_text(f"before\n{block}\nafter\n<!-- begin none.json x -->\n<!-- end -->\n")
    for render in script("render"):
        paths = ["--results", str(path.parent), "--docs", str(docs)]
        assert render.main([*paths, "--check"]) == 1
        assert render.main(paths) == 0
        assert render.main([*paths, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- begin ")
    assert "after" in text
    assert "\nold\n" not in text
    assert "Not measured yet: `python benchmarks/none.py`" in text
    if name == "break_even":
        assert (docs / "figures" / "break-even.png").stat().st_size > 1000
    else:
        assert "×" in text or "%" in text


def test_an_unknown_section_is_told(tmp_path: Path) -> None:
    from sparseflow.errors import SparseflowError
    from sparseflow.studies.kernel_results import PublishedResults

    (tmp_path / "published.json").write_text(json.dumps(encode(PublishedResults("cpu"))))
    for render in script("render"):
        with pytest.raises(SparseflowError, match="has no section 'curves'; known: layers, network, machine"):
            render.Sources(tmp_path, None).text("published.json", "curves")


def test_mobilenet_v2_has_its_34_pointwise_layers() -> None:
    for published in script("published"):
        layers = published.mobilenet_v2_layers()
        assert sum(layers.values()) == 34
        flops = sum(layer.flops * n for layer, n in layers.items()) / 2
        assert flops == pytest.approx(0.27e9, rel=0.05)  # of 0.30e9 multiply-adds in the whole network


@pytest.mark.parametrize("kernel_script", ["training_overhead"], indirect=True)
def test_training_overhead_times_every_method(
    kernel_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "overhead.json"
    assert kernel_script.main(["--batch", "2", "--rounds", "2", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert rows[0]["method"] == "dense"
    assert rows[0]["ratio"] == 1
    assert {"admm", "sr_ste", "rigl"} <= {row["method"] for row in rows}
    assert capsys.readouterr().out.count("\n") == len(rows) + 2


@pytest.mark.parametrize("kernel_script", ["one_shot"], indirect=True)
def test_one_shot_compares_the_methods_without_training(
    kernel_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(MnistCnn().state_dict(), tmp_path / "dense.pt")
    recipe = Path(__file__).parents[1] / "recipes" / "mnist5k_block.toml"
    arguments = [str(recipe), "--weights", str(tmp_path / "dense.pt"), "--images", "8"]
    assert (
        kernel_script.main([*arguments, "--sparsify", "filter@0.5", "--methods", "magnitude,taylor,admm"])
        == 0
    )
    out, err = capsys.readouterr()
    assert [line.split(" | ")[1] for line in out.splitlines()[2:]] == ["–", "`magnitude`", "`taylor`"]
    assert "admm needs training" in err


def test_selection_marks_what_holds() -> None:
    times = {"measured": 10.0, "predicted": 13.0, "dense": 40.0}
    case = {
        "model": "m",
        "sparsify": "s",
        "threads": 1,
        "ms": times,
        "planned_ms": {"layers": 8.0, "rest": 1.0},
    }
    for selection in script("selection"):
        line = selection.markdown({"machine": "CPU", "cases": {"m s": case}}).splitlines()[2]
        assert line == "| m | s | 10.00 ms | 90% ✓ | 13.00 ms, 1.30× ✗ | 40.00 ms, 4.00× ✓ |"


def test_selection_runs_the_three_plans_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sparseflow.engine.frontends.importer import import_model

    class Loaded:
        def imported(self) -> Any:
            return import_model(torch.nn.Conv2d(8, 8, 3).eval(), (torch.zeros(1, 8, 8, 8),))

    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    for selection in script("selection"):
        monkeypatch.setattr(selection, "load_model", lambda _request: Loaded())
        arguments = [
            "--models",
            "tiny",
            "--sparsify",
            "unstructured@0.9",
            "--rounds",
            "1",
            "--out",
            str(tmp_path),
        ]
        assert selection.main(arguments) == 0
        (case,) = json.loads((tmp_path / "selection.json").read_text())["cases"].values()
        assert set(case["ms"]) == {"measured", "predicted", "dense"}
        assert case["planned_ms"]["layers"] > 0


def test_weight_types_are_compared_with_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    for weight_types in script("weight_types"):
        monkeypatch.setattr(weight_types, "load_model", lambda _request: Loaded(model, (1, 256)))
        arguments = ["--models", "small", "--sparsify", "dense", "--rounds", "2", "--out", str(tmp_path)]
        assert weight_types.main(arguments) == 0
        data = json.loads((tmp_path / "weight_types.json").read_text())
        (case,) = data["cases"].values()
        assert list(case["types"]) == ["float32", "float16", "bfloat16"]
        assert case["types"]["float32"]["error"] == 0.0
        assert 0 < case["types"]["float16"]["error"] < case["types"]["bfloat16"]["error"] < 0.01
        assert case["types"]["float32"]["weight_bytes"] == 4 * (256 + 10) * 128
        rows = weight_types.markdown(data).splitlines()[2:5]
        assert [row.split(" | ")[2] for row in rows] == ["float32", "float16", "bfloat16"]
        assert "1.00×" in rows[0]


@NEEDS_PAIRS
def test_bfloat16_is_compared_with_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    for precision in script("precision"):
        monkeypatch.setattr(precision, "load_model", lambda _request: Loaded(model, (1, 8, 12, 12)))
        arguments = ["--models", "small", "--weights", "none", "--rounds", "2", "--out", str(tmp_path)]
        assert precision.main(arguments) == 0
        data = json.loads((tmp_path / "precision.json").read_text())
        (case,) = data["cases"].values()
        assert (case["narrow_layers"], case["layers"]) == (2, 2)
        assert 0 < case["error"] < 0.02
        (row,) = precision.markdown(data).splitlines()[2:3]
        assert row.startswith("| small | dense | ")


def test_the_table_of_int8_networks_names_the_best_peer_of_each_kind() -> None:
    times = {
        "sparseflow": 2.0,
        "openvino-int8": 9.0,
        "onnxruntime-int8": 8.0,
        "openvino": 42.0,
        "onnxruntime": 30.0,
    }
    results = [
        {"engine": name, "latency_ms": {"median": ms}, "max_relative_error": 0.01}
        for name, ms in times.items()
    ]
    cases = {
        f"{model} x": {"model": model, "sparsify": "block:4x4@0.9", "results": results}
        for model in ("small", "vgg16")
    }
    for int8 in script("int8"):
        small, vgg = int8.markdown({"machine": "here", "cases": cases}).splitlines()[2:4]
        assert "| 8.00 ms (onnxruntime-int8) | 1.0e-02 | 4.00× | 30.00 ms (onnxruntime) | 15.00× |" in small
        assert vgg.endswith("| 10.00× |")  # OpenVINO's time / 2.1


@NEEDS_QUADS
@pytest.mark.slow
def test_int8_kernels_are_timed_beside_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE", str(tmp_path))
    for kernels in script("int8_kernels"):
        layer = kernels.Layer("3x3 16→16 @14²", "3x3", 16, 16, 14, 14, 3)
        row = kernels.Layer("linear 64→48, 1 row", "one row", 64, 48, 1, 1, op="linear")
        monkeypatch.setattr(kernels, "LAYERS", (layer, row))
        assert kernels.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
        cases = json.loads((tmp_path / "int8_kernels.json").read_text())["cases"]
        assert len(cases) == 6
        assert all(0 < case["useful_gops"] < case["peak_gops"] for case in cases.values())


@pytest.mark.slow
def test_two_versions_are_timed_in_turn(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    path = tmp_path / "small.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(1, 8, 12, 12),)), path)
    options = ["--sparsify", "none", "--turns", "3", "--turn-s", "0.05", "--limit", "99"]
    command = [sys.executable, "benchmarks/versions.py", str(ROOT), "--models", str(path), *options]
    command += ["--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "cache" / "rows.json").read_text())
    assert row["difference"] == 0.0
    assert 0.0 < row["ratio"] < 99.0
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "small.pt2" in again.stdout
    assert "none" not in again.stderr  # nothing is measured again
    wrong = subprocess.run(
        [sys.executable, "benchmarks/versions.py", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert wrong.returncode == 2
    assert "found no src/sparseflow" in wrong.stderr


def test_ways_to_few_bits_share_the_stages_before() -> None:
    from sparseflow.train import load_recipe

    for module in script("low_precision_training"):
        recipe = load_recipe(ROOT / "recipes" / "cifar10_narrow_int8.toml")
        found = module.variants(recipe)
        assert set(found) == {"sparse, float32", *module.VARIANTS, *module.ROUNDED}
        before = [recipe.fingerprint(i) for i in range(len(recipe.stages) - 1)]
        for name, made in found.items():
            assert [made.fingerprint(i) for i in range(len(before))] == before, name
        assert found["int8"].fingerprint(len(before)) == recipe.fingerprint(len(before))
        whole = {made.fingerprint(len(made.stages) - 1) for made in found.values()}
        assert len(whole) == len(found)
        with pytest.raises(SystemExit, match="the last stage is retrain; quantise is allowed"):
            module.variants(found["sparse, float32"])
