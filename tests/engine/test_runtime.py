"""The engine: arrays in and out, saved and loaded whole or not at all, measured and profiled by operator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparseflow
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import CODE, MANIFEST, WEIGHTS, read_manifest
from sparseflow.errors import EngineError, InputError

Tensor = Any


class Net(torch.nn.Module):
    """Two inputs, three results, a layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.body = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.head = torch.nn.Linear(16, 5)
        with torch.no_grad():
            self.body.weight[torch.rand(self.body.weight.shape) < 0.9] = 0.0

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(self.body(torch.relu(self.conv(x))))
        return self.head(y.mean((2, 3))) * scale, y, torch.tanh(y)


SHAPE = (1, 3, 9, 11)


@pytest.fixture(scope="module")
def net() -> Any:
    return Net().eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal(SHAPE).astype(np.float32), np.full((1, 5), 2.0, np.float32)


@pytest.fixture(scope="module")
def engine(net: Any, inputs: Any) -> Engine:
    return sparseflow.compile(net, tuple(torch.from_numpy(x) for x in inputs), measure=False)


@pytest.fixture(scope="module")
def expected(net: Any, inputs: Any) -> list[np.ndarray]:
    with torch.no_grad():
        return [y.numpy() for y in net(*(torch.from_numpy(x) for x in inputs))]


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: Any) -> Path:
    return engine.save(tmp_path_factory.mktemp("engines") / "net.engine")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved engine that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy.engine"))


def _check(found: Any, expected: list[np.ndarray]) -> None:
    assert isinstance(found, tuple)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs, atol=1e-5, rtol=1e-5)


def _one_line(caught: Any) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def test_numpy_in_numpy_out(engine: Engine, inputs: Any, expected: Any) -> None:
    found = engine(*inputs)
    assert all(type(y) is np.ndarray for y in found)
    _check(found, expected)


def test_torch_in_torch_out(engine: Engine, inputs: Any, expected: Any) -> None:
    found = engine(*(torch.from_numpy(x).requires_grad_() for x in inputs))
    assert all(isinstance(y, torch.Tensor) for y in found)
    _check(found, expected)


def test_results_outlive_the_next_call(engine: Engine, inputs: Any, expected: Any) -> None:
    found = engine(*inputs)
    for _ in range(3):
        engine(np.zeros(SHAPE, np.float32), inputs[1])
    _check(found, expected)


def _unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 128, np.uint8)
    start = (-raw.ctypes.data) % 64 + 4
    view = raw[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    view[...] = x
    assert view.ctypes.data % 64
    return view


def _read_only(x: np.ndarray) -> np.ndarray:
    fixed = x.copy()
    fixed.flags.writeable = False
    return fixed


ODD = {
    "unaligned": _unaligned,
    "read-only": _read_only,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: x[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
    "torch, transposed": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).permute(*range(x.ndim)[::-1]),
    "torch, unaligned": lambda x: torch.from_numpy(_unaligned(x)),
}


@pytest.mark.parametrize("kind", ODD)
def test_memory_of_any_kind(kind: str, engine: Engine, inputs: Any, expected: Any) -> None:
    given = [ODD[kind](x) for x in inputs]
    before = [np.array(np.asarray(x)) for x in given]
    _check(engine(*given), expected)
    for x, unchanged in zip(given, before, strict=True):
        np.testing.assert_array_equal(np.asarray(x), unchanged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:1], ["1 inputs", "2 expected"]),
        (lambda x: [*x, x[0]], ["3 inputs", "2 expected"]),
        (lambda x: [], ["0 inputs", "2 expected"]),
        (lambda x: [x[0][:, :2], x[1]], ["float32[1, 2, 9, 11]", "float32[1, 3, 9, 11]"]),
        (lambda x: [x[0][0], x[1]], ["[3, 9, 11]", "[1, 3, 9, 11]"]),
        (lambda x: [x[0].astype(np.float64), x[1]], ["float64", "float32"]),
        (lambda x: [torch.from_numpy(x[0]).half(), x[1]], ["float16", "float32"]),
        (lambda x: [x[0], [[1.0] * 5]], ["list", "float32[1, 5]"]),
        (lambda x: [x[0], None], ["NoneType", "float32[1, 5]"]),
    ],
)
def test_wrong_inputs_are_one_clear_line(change: Any, words: list[str], engine: Engine, inputs: Any) -> None:
    with pytest.raises(InputError) as caught:
        engine(*change(list(inputs)))
    text = _one_line(caught)
    assert all(w in text for w in words), text


def test_signatures_name_inputs_and_results(engine: Engine) -> None:
    assert [(s.name, s.shape, s.dtype) for s in engine.inputs] == [
        ("x", SHAPE, "float32"),
        ("scale", (1, 5), "float32"),
    ]
    assert [s.shape for s in engine.outputs] == [(1, 5), (1, 16, 9, 11), (1, 16, 9, 11)]


def test_measure_is_a_median_with_spread_and_machine(engine: Engine, inputs: Any) -> None:
    m = engine.measure(*inputs, repeats=5, warmup=1)
    assert m.repeats == 5
    assert m.threads == engine.threads == 1
    assert 0 < m.min_s <= m.p10_s <= m.median_s <= m.p90_s
    assert m.machine == engine.manifest.machine


def test_profile_names_layers_and_adds_up(engine: Engine, inputs: Any) -> None:
    operators = engine.profile(*inputs, repeats=3)
    names = [o.name for o in operators]
    assert [n for n in names if n in ("conv", "body", "head")] == ["conv", "body", "head"]
    assert all(o.time_s > 0 and o.kind for o in operators)
    assert sum(o.share for o in operators) == pytest.approx(1.0)
    assert any("tanh" in o.kind for o in operators)


def test_explain_lists_every_layer(engine: Engine) -> None:
    plan = engine.explain()
    assert plan is engine.plan
    assert [layer.name for layer in plan.layers] == ["conv", "body", "head"]
    body = plan.layers[1]
    assert body.density == pytest.approx(0.1, abs=0.02)
    assert body.format == "tap-list"
    assert body.index_bytes > 0


def test_saved_and_loaded_engines_agree(engine: Engine, saved: Path, inputs: Any, expected: Any) -> None:
    assert sorted(p.name for p in saved.iterdir()) == sorted([CODE, MANIFEST, WEIGHTS])
    loaded = Engine.load(saved)
    assert loaded.plan == engine.plan
    assert loaded.manifest == engine.manifest
    _check(loaded(*inputs), expected)
    again = loaded.profile(*inputs, repeats=2)
    assert [o.name for o in again] == [o.name for o in engine.profile(*inputs, repeats=2)]


LOADER = """
import sys
sys.modules["torch"] = None  # as where it is not installed; TVM's own FFI would import it
import numpy as np
import tvm
from sparseflow import Engine
for name in ("target.build.llvm",):
    assert tvm.get_global_func(name, allow_missing=True) is None, name
engine = Engine.load(sys.argv[1])
data = np.load(sys.argv[2])
found = engine(data["x"], data["scale"])
np.savez(sys.argv[3], *found)
print(any(name.startswith("torch.") for name in sys.modules), len(engine.plan.layers))
"""


def test_an_engine_runs_without_torch_and_compiler(
    saved: Path, inputs: Any, expected: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", x=inputs[0], scale=inputs[1])
    empty = tmp_path / "no tools"
    empty.mkdir()
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PATH": str(empty)}
    arguments = [str(saved), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == ["False", "3"], done.stderr
    with np.load(tmp_path / "out.npz") as found:
        _check(tuple(found[n] for n in found.files), expected)


@pytest.mark.parametrize("name", [CODE, WEIGHTS, MANIFEST])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(name: str, keep: float, copy: Path) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(EngineError, match=name) as caught:
        Engine.load(copy)
    assert "compile" in _one_line(caught)


@pytest.mark.parametrize("name", [CODE, WEIGHTS, MANIFEST])
def test_missing_files_are_refused(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineError, match=name) as caught:
        Engine.load(copy)
    _one_line(caught)


def test_changed_weights_are_refused(copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(EngineError, match="truncated or changed"):
        Engine.load(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flags": ["avx9", "sse77"]}, "avx9, sse77, which this one lacks"),
        ({"architecture": "riscv64"}, "compiled for riscv64"),
        ({"tvm_version": "0.1"}, "TVM 0.1"),
        ({"format": 99}, "engine format 99"),
        ({"inputs": None}, "damaged"),
        ({"inputs": [{}]}, "damaged"),
        ({"threads": "many"}, "damaged"),
        ({"sha256": None}, "damaged"),
        ({"sha256": {}}, "damaged"),
        ({"surplus": 1}, "damaged"),
        ({"plan": []}, "damaged"),
        ({"calls": [1]}, "damaged"),
    ],
)
def test_engines_of_elsewhere_and_damaged_manifests(change: dict[str, Any], words: str, copy: Path) -> None:
    data = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**data, **change}))
    with pytest.raises(EngineError) as caught:
        Engine.load(copy)
    assert words in _one_line(caught)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "\udcff"])
def test_manifests_that_are_no_objects(text: str, copy: Path) -> None:
    (copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EngineError, match="damaged") as caught:
        Engine.load(copy)
    _one_line(caught)


def test_nothing_to_load(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(EngineError, match="no engine here") as caught:
            Engine.load(path)
        _one_line(caught)
    with pytest.raises(EngineError, match="no engine here"):
        read_manifest(tmp_path)


def test_saving_replaces_an_engine_and_nothing_else(engine: Engine, copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"old")
    engine.save(copy)
    Engine.load(copy)
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    file = tmp_path / "file"
    file.write_text("data")
    for path in (folder, file):
        with pytest.raises(EngineError, match="is not an engine") as caught:
            engine.save(path)
        _one_line(caught)
    assert (folder / "thesis.txt").read_text() == "years"
    assert file.read_text() == "data"


def test_a_failed_save_leaves_nothing_and_keeps_the_old(
    engine: Engine, copy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    before = {p.name: p.read_bytes() for p in copy.iterdir()}

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    for path in (copy, tmp_path / "new.engine"):
        with pytest.raises(EngineError, match="No space left") as caught:
            engine.save(path)
        _one_line(caught)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [copy.name]


def test_the_old_engine_returns_when_the_new_one_cannot_take_its_place(
    engine: Engine, copy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    replace, calls = os.replace, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(EngineError, match="nothing was changed"):
        engine.save(copy)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == [copy.name]


def test_saving_without_a_compiler_is_one_clear_line(
    engine: Engine, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match="compiler") as caught:
        engine.save(tmp_path / "new.engine")
    _one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_saving_below_a_file_is_one_clear_line(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError) as caught:
        engine.save(tmp_path / "file" / "net.engine")
    _one_line(caught)
