"""The engine: arrays in and out, saved and loaded whole or not at all, measured and profiled by operator."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
torch = pytest.importorskip("torch")

import sparseflow  # noqa: E402
from sparseflow.engine.manifest import CODE, MANIFEST, WEIGHTS, read_manifest, sha256  # noqa: E402
from sparseflow.engine.runtime import Engine  # noqa: E402
from sparseflow.errors import EngineError, InputError  # noqa: E402

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


def _seal(folder: Path) -> None:
    """Writes the checksums of files as they are now: what a damaged disk or a foreign tool leaves may have them."""
    data = json.loads((folder / MANIFEST).read_text())
    data["sha256"] = {name: sha256(folder / name) for name in (CODE, WEIGHTS)}
    (folder / MANIFEST).write_text(json.dumps(data))


def _without_end(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _compressed(data: bytes, damage: int) -> bytes:
    """The weights deflated, with one byte of the stream changed."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    damaged = bytearray(out.getvalue())
    damaged[damage] ^= 0xFF
    return bytes(damaged)


def _npy(data: bytes) -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def _pickled(data: bytes) -> bytes:
    out = io.BytesIO()
    np.savez(out, w=np.array([{}], dtype=object))
    return out.getvalue()


def _huge(data: bytes) -> bytes:
    """An array whose header asks for more memory than there is."""
    out = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return out.getvalue()


DAMAGE: dict[str, Any] = {
    "empty": lambda data: b"",
    "half": _without_end,
    "text": lambda data: b"not a zip",
    "zip header only": lambda data: b"PK\x03\x04",
    "stream": lambda data: _compressed(data, 300),
    "stream elsewhere": lambda data: _compressed(data, 150),
    "one array, no zip": _npy,
    "pickle": _pickled,
    "huge": _huge,
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_whose_checksum_agrees(kind: str, copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(DAMAGE[kind]((copy / WEIGHTS).read_bytes()))
    _seal(copy)
    with pytest.raises(EngineError, match=rf"{WEIGHTS}: .*; compile the engine anew") as caught:
        Engine.load(copy)
    _one_line(caught)


@pytest.mark.parametrize("position", range(0, 600, 37))
def test_a_changed_byte_in_weights_whose_checksum_agrees(position: int, copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[position] ^= 0xFF
    (copy / WEIGHTS).write_bytes(bytes(data))
    _seal(copy)
    with contextlib.suppress(EngineError):  # a byte that the reader does not look at does no harm
        Engine.load(copy)


OTHERS: dict[str, tuple[Any, str]] = {
    "missing": (lambda w: dict(list(w.items())[1:]), "lacks"),
    "surplus": (lambda w: {**w, "more": np.zeros(2, np.float32)}, "holds more float32[2]"),
    "dtype": (lambda w: {k: a.astype(np.float64) for k, a in w.items()}, "lacks"),
    "shape": (lambda w: {k: a.reshape(-1)[:-1] for k, a in w.items()}, "lacks"),
    "order": (lambda w: dict(reversed(list(w.items()))), "holds them in another order"),
    "none": (lambda w: {}, "lacks"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_another_engine(kind: str, copy: Path) -> None:
    change, words = OTHERS[kind]
    with np.load(copy / WEIGHTS) as file:
        weights = {name: file[name] for name in file.files}
    np.savez(copy / WEIGHTS, **change(weights))
    _seal(copy)
    with pytest.raises(EngineError, match=f"{WEIGHTS}: ") as caught:
        Engine.load(copy)
    assert words in _one_line(caught)


def test_an_engine_saved_before_weights_were_listed(copy: Path, inputs: Any, expected: Any) -> None:
    data = json.loads((copy / MANIFEST).read_text())
    del data["weights"]
    (copy / MANIFEST).write_text(json.dumps(data))
    _check(Engine.load(copy)(*inputs), expected)


@pytest.mark.parametrize("kind", ["text", "other library"])
def test_code_of_something_else_whose_checksum_agrees(kind: str, copy: Path) -> None:
    if kind == "text":
        (copy / CODE).write_bytes(b"no code")
    else:
        (copy / "x.c").write_text("int f(void) { return 1; }")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", copy / CODE, copy / "x.c"], check=True)
    _seal(copy)
    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        Engine.load(copy)
    _one_line(caught)


def _with(data: Any, path: str, value: Any) -> Any:
    """``data`` with ``value`` at a path of keys and indices."""
    *parents, last = (int(k) if k.isdecimal() else k for k in path.split("."))
    part = data
    for key in parents:
        part = part[key]
    part[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("threads", 1.5, "threads: found 1.5, expected int"),
        ("threads", "2", "threads: found '2', expected int"),
        ("threads", True, "threads: found True, expected int"),
        ("threads", 0, "threads: found 0, allowed: 1 to"),
        ("threads", 2**40, "allowed: 1 to"),
        ("threads", float("inf"), "threads: found inf"),
        ("machine", 5, "machine: found 5, expected str"),
        ("target", None, "target: found None, expected str"),
        ("flags", "avx2", "found 'avx2', expected a list"),
        ("flags", [2], "flags[0]: found 2, expected str"),
        ("architecture", None, "architecture: found None, expected str"),
        ("calls", {"ab": 1}, "expected a list"),
        ("calls", [["a", "b", "c"]], "calls[0]"),
        ("inputs.0.shape", "123", "inputs[0].shape[0]: found '1', expected int"),
        ("inputs.0.shape", [1.0, 3], "inputs[0].shape[0]: found 1.0, expected int"),
        ("inputs.0.dtype", 32, "inputs[0].dtype: found 32, expected str"),
        ("outputs.0.name", None, "outputs[0].name: found None, expected str"),
        ("weights", 5, "damaged"),
        ("weights", [[]], "damaged"),
        ("plan.layers", {"a": 1}, "damaged"),
        ("plan.layers.0.density", "0.1", "plan.layers[0].density: found '0.1', expected float"),
        ("plan.layers.0.chosen.time_s", None, "plan.layers[0].chosen.time_s: found None, expected float"),
        ("plan.layers.0.chosen.parameters", {"R": "4"}, "parameters['R']: found '4', expected int"),
        ("plan.measured", "yes", "plan.measured: found 'yes', expected bool"),
        ("plan.notes", [3], "plan.notes[0]: found 3, expected str"),
        ("sha256", [], "damaged"),
        ("sha256", "x", "damaged"),
        ("format", [], "engine format []"),
    ],
)
def test_manifests_of_wrong_types(path: str, value: Any, words: str, copy: Path) -> None:
    data = _with(json.loads((copy / MANIFEST).read_text()), path, value)
    (copy / MANIFEST).write_text(json.dumps(data))
    for read in (Engine.load, read_manifest):
        with pytest.raises(EngineError) as caught:
            read(copy)
        assert words in _one_line(caught)


def test_a_manifest_that_is_nested_too_deep(copy: Path) -> None:
    (copy / MANIFEST).write_text("[" * 200_000)
    with pytest.raises(EngineError, match="damaged") as caught:
        Engine.load(copy)
    _one_line(caught)
