"""``inspect --data`` and ``--calibrate``: the zeros of feature maps on real data, and data that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparseflow import Engine
from sparseflow.core.codec import decode
from sparseflow.report import words
from sparseflow.studies.map_results import MapResults
from tests.cli.conftest import Files, Outcome

Invoke = Callable[..., Outcome]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32))
    return path


def test_the_maps_are_listed_and_the_file_is_a_report(
    invoke: Invoke, files: Files, images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "maps.json"
    done = invoke("inspect", files.pt2, "--data", images, "--samples", 4, "--json", target)
    assert done.code == 0, done.err
    found = decode(MapResults, json.loads(target.read_text()))
    assert [layer.name for layer in found.layers] == ["stem", "body", "head"]
    assert found.images == 4
    assert 0.3 < found.layers[1].map.mean < 0.7
    assert words.percent(found.layers[1].map.mean) in done.out
    assert found.layers[1].times_s == {}
    assert invoke("report", target, "-o", tmp_path / "page.html").code == 0
    assert "Where they are dense" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_kernels_are_timed_when_asked(invoke: Invoke, files: Files, images: Path) -> None:
    done = invoke(
        "inspect", files.pt2, "--sparsify", "block:4x1@0.75", "--data", images, "--time", "--json", "-"
    )
    assert done.code == 0, done.err
    found = decode(MapResults, json.loads(done.out))
    body = found.layers[1]
    assert body.weight_density == pytest.approx(0.25, abs=0.01)
    assert {"dense", "weights"} <= set(body.times_s)
    assert min(body.times_s.values()) > 0
    assert found.machine


def test_arrays_by_the_inputs_names(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", other=np.zeros(3), x=np.ones((2, 3, 8, 8), np.float32))
    assert invoke("inspect", files.pt2, "--data", tmp_path / "x.npz").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.npy"], r"missing.npy: no readable array"),
        (["--data", "DAMAGED"], r"damaged.npz: no readable array"),
        (["--data", "OBJECTS"], r"objects.npz: no readable array"),
        (["--data", "no-such-data"], "unknown data set 'no-such-data'; known"),
        (["--data", "FLAT"], r"found arrays of shape (5, 7); the model takes x ('count', 3, 8, 8)"),
        (["--data", "IMAGES", "--cut"], "leave out --cut and --layer"),
        (["--time"], "--time needs --data"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(
    arguments: list[str], message: str, invoke: Invoke, files: Files, images: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((5, 7), np.float32))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    names = {"FLAT": "flat.npy", "DAMAGED": "damaged.npz", "OBJECTS": "objects.npz"}
    places = {"IMAGES": str(images), **{k: str(tmp_path / v) for k, v in names.items()}}
    done = invoke("inspect", files.pt2, *(places.get(a, a) for a in arguments))
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_a_calibrated_engine_knows_its_densities(
    invoke: Invoke, files: Files, images: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "small.engine"
    done = invoke("compile", files.pt2, "--calibrate", images, "--samples", 3, "--no-measure", "-o", engine)
    assert done.code == 0, done.err
    maps = Engine.load(engine).plan.maps
    assert maps is not None
    assert maps.calls == 3
    assert 0.3 < maps.layers[1].mean < 0.7


def test_a_calibrated_bench_runs_on_the_data(invoke: Invoke, files: Files, images: Path) -> None:
    done = invoke(
        "bench",
        files.pt2,
        "--calibrate",
        images,
        "--no-measure",
        "--against",
        "torch",
        "--rounds",
        1,
        "--json",
        "-",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["plan"]["maps"]["calls"] == 5


def test_data_that_do_not_fit_stop_a_compilation(invoke: Invoke, files: Files, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((5, 7), np.float32))
    done = invoke("compile", files.pt2, "--calibrate", tmp_path / "flat.npy", "-o", tmp_path / "engine")
    assert (done.code, done.out) == (1, "")
    assert "found arrays of shape (5, 7); the model takes x" in done.err
    assert not (tmp_path / "engine").exists()
