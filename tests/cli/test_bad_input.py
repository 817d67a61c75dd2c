"""Bad input: one clear line on standard error, exit code 1, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Files, Outcome

Invoke = Callable[..., Outcome]


def assert_one_line(done: Outcome, *parts: str) -> None:
    assert done.code == 1
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("sparseflow: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("command", ["compile", "inspect", "bench", "explain", "report", "prune"])
def test_missing_file(command: str, invoke: Invoke, tmp_path: Path) -> None:
    ending = {"explain": "engine", "report": "run", "prune": "toml"}.get(command, "onnx")
    out = ("-o", tmp_path / "out") if command in ("compile", "prune") else ()
    done = invoke(command, tmp_path / f"none.{ending}", *out)
    assert_one_line(done, f"none.{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--sparsify", "block:4x1@1.5"], ["1.5"]),
        (["--sparsify", "block:4x1@-0.1"], ["-0.1"]),
        (["--sparsify", "blocks:4x1@0.9"], ["blocks", "known:"]),
        (["--sparsify", "unstructured"], ["unstructured", "@"]),
        (["--sparsify", "nm:5:4"], ["nm"]),
        (["--sparsify", "unstructured@0.5", "--include", "head"], ["'head'", "stem, depthwise, classifier"]),
        (["--shape", "image=0,3,8,8"], ["--shape image=0,3,8,8", "NAME=SIZES"]),
        (["--shape", "1,3,8,8"], ["--shape 1,3,8,8", "NAME=SIZES"]),
        (["--shape", "x=1,3,8,8", "--shape", "x=1,3,8,8"], ["given twice"]),
        (["--shape", "y=1,3,8,8"], ["no such input", "its inputs: x"]),
        (["--shape", "x=1,3,9,8"], ["1,3,9,8", "does not fit", "1,3,8,8"]),
        (["--batch", "2"], ["--batch is for zoo models"]),
        (["--threads", "1000"], ["threads=1000: allowed: 1 to ", "--no-measure"]),
        (["--threads", "1025", "--no-measure"], ["threads=1025: allowed: whole numbers 1 to 1024"]),
        (["--dump", "/dev/null/ir", "--no-measure"], ["dump: /dev/null/ir cannot be written"]),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], parts: list[str], invoke: Invoke, files: Files, tmp_path: Path
) -> None:
    done = invoke("compile", files.pt2, *arguments, "-o", tmp_path / "out.engine")
    assert_one_line(done, *parts)
    assert list(tmp_path.iterdir()) == []


def test_structure_that_fits_no_layer(invoke: Invoke, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "linear.pt2"
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 8),)), path)
    done = invoke("compile", path, "--sparsify", "pattern:4+connectivity@0.8", "-o", tmp_path / "x.engine")
    assert_one_line(done, "fits no layer", "pattern")
    assert not (tmp_path / "x.engine").exists()


def test_unsupported_operator(invoke: Invoke, tmp_path: Path) -> None:
    import torch

    class Eigen(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    path = tmp_path / "eigen.pt2"
    torch.export.save(torch.export.export(Eigen().eval(), (torch.randn(3, 3),)), path)
    done = invoke("compile", path, "-o", tmp_path / "x.engine")
    assert_one_line(done, "unsupported operator aten.linalg_eig", "at node")
    assert not (tmp_path / "x.engine").exists()


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_truncated_model(kind: str, invoke: Invoke, files: Files, tmp_path: Path) -> None:
    whole = {"pt2": files.pt2, "onnx": files.onnx}[kind].read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[: len(whole) // 2])
    assert_one_line(invoke("inspect", path), f"cut.{kind}")


def test_unbound_onnx_dimension(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    done = invoke("compile", files.onnx, "-o", tmp_path / "x.engine")
    assert_one_line(done, "'image'", "free dimensions", "--shape image=1,3,8,8")


def test_wrong_ending_and_unknown_zoo_model(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    assert_one_line(invoke("inspect", tmp_path / "model.h5"), "model.h5", ".h5", ".onnx")
    assert_one_line(invoke("inspect", "zoo:alexnet"), "alexnet", "known: bert_base")
    assert_one_line(invoke("inspect", "zoo:resnet18", "--layer", "conv9"), "'conv9'", "conv1.weight")


def copy_engine(files: Files, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.engine"
    shutil.copytree(files.engine, copy)
    return copy


def test_truncated_engine(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    engine = copy_engine(files, tmp_path)
    largest = max(engine.iterdir(), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    assert_one_line(invoke("explain", engine, "--profile"), largest.name)


def test_engine_for_another_cpu(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    engine = copy_engine(files, tmp_path)
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["flags"] = [*manifest["flags"], "avx9000"]
    (engine / "manifest.json").write_text(json.dumps(manifest))
    assert_one_line(invoke("explain", engine, "--profile"), "avx9000")


def test_unknown_layer_of_an_engine(invoke: Invoke, files: Files) -> None:
    assert_one_line(invoke("explain", files.engine, "--layer", "conv9"), "conv9", "body")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--against", "torhc"], "unknown peer 'torhc'"),
        (["--threads", "4096"], "threads=4096: allowed"),
    ],
)
def test_bench_options(arguments: list[str], part: str, invoke: Invoke, files: Files) -> None:
    assert_one_line(invoke("bench", files.pt2, *arguments), part)


def test_threads_of_other_commands(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    for command in (
        ("tune", files.pt2, "-o", tmp_path / "table.json"),
        ("quickstart", "--out", tmp_path / "out"),
    ):
        assert_one_line(invoke(*command, "--threads", "1000"), "threads=1000: allowed: 1 to ")
    assert list(tmp_path.iterdir()) == []


def test_recipe_with_an_unknown_key(invoke: Invoke, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "x"\nbogus_key = 1\n[[stages]]\nkind = "magnitude"\n')
    done = invoke("prune", recipe, "-o", tmp_path / "run")
    assert_one_line(done, "bogus_key")
    assert not (tmp_path / "run").exists()


def test_output_that_exists_and_is_something_else(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    done = invoke("compile", files.pt2, "--no-measure", "-o", out)
    assert_one_line(done, "folder")
    assert (out / "precious.txt").read_text() == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]


def test_json_into_a_file_that_cannot_be_written(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    done = invoke("inspect", files.pt2, "--json", tmp_path / "plain" / "x.json")
    assert_one_line(done, "plain")


def test_traceback_shows_where(invoke: Invoke, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such file") as caught:
        invoke("--traceback", "inspect", tmp_path / "none.onnx")
    assert type(caught.value).__name__ == "ImportModelError"
