"""Saved engines with damaged or foreign files: one line when they are loaded, also where the checksums agree."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparseflow
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import CODE, MANIFEST, WEIGHTS, read_manifest, sha256
from sparseflow.errors import EngineError

X = torch.ones(1, 3, 8, 8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)
    return sparseflow.compile(torch.nn.Sequential(*layers).eval(), (X,), measure=False)


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: Any) -> Path:
    return engine.save(tmp_path_factory.mktemp("engines") / "net.engine")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved engine that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy.engine"))


def _one_line(caught: Any) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


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


def test_an_engine_saved_before_weights_were_listed(copy: Path, engine: Engine) -> None:
    data = json.loads((copy / MANIFEST).read_text())
    del data["weights"]
    (copy / MANIFEST).write_text(json.dumps(data))
    np.testing.assert_array_equal(Engine.load(copy)(X.numpy()), engine(X.numpy()))


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
        ("inputs.0.shape", "123", "inputs[0].shape: found '123', expected a list"),
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
