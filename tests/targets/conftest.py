"""An aarch64 machine in an emulator: a driver that calls compiled libraries, built once a session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.conftest import dense_reference  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "build" / "aarch64"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = "/usr/aarch64-linux-gnu"
KINDS = [np.dtype(t) for t in ("float32", "int32", "uint16", "int64")]


def write_tensors(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """The format that run_engine.cc explains."""
    with path.open("wb") as file:
        for array in arrays:
            np.array([KINDS.index(array.dtype), array.ndim, *array.shape], np.int64).tofile(file)
            np.ascontiguousarray(array).tofile(file)


def read_tensors(path: Path) -> list[np.ndarray]:
    """The inverse of `write_tensors`."""
    found = []
    with path.open("rb") as file:
        while len(head := np.fromfile(file, np.int64, 2)):
            shape = np.fromfile(file, np.int64, head[1])
            found.append(np.fromfile(file, KINDS[head[0]], int(shape.prod())).reshape(shape))
    return found


class Emulator:
    """Runs code for aarch64 under qemu with TVM's own runtime for aarch64."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.driver = folder, folder / "run_engine"
        spec = importlib.util.find_spec("tvm_ffi")
        assert spec is not None
        assert spec.origin is not None
        headers, library = Path(spec.origin).parent, RUNTIME / "lib"
        command = [COMPILER, "-std=c++17", "-O1", str(Path(__file__).with_name("run_engine.cc"))]
        command += [f"-I{headers / 'include'}", f"-I{headers / '3rdparty/dlpack/include'}", f"-L{library}"]
        command += ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_runtime_extra", "-ltvm_ffi"]
        subprocess.run([*command, f"-Wl,-rpath,{library}", "-o", str(self.driver)], check=True)

    def run(self, library: Path, function: str, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The results of ``function``; ``main`` is a whole network."""
        given, got = self.folder / "in", self.folder / "out"
        got.unlink(missing_ok=True)
        write_tensors(given, tensors)
        command = [EMULATOR, "-L", SYSTEM, self.driver, library, function, given, got]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{function}: exit {done.returncode}: {done.stderr[-2000:]}"
        return read_tensors(got)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The emulator; where a part is missing the test is skipped, under CI it fails."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed; run tools/aarch64.sh")
    wanted = f"apache-tvm=={version('apache-tvm')} apache-tvm-ffi=={version('apache-tvm-ffi')}"
    versions = RUNTIME / "versions"
    if not versions.is_file() or versions.read_text().strip() != wanted:
        missing(f"no aarch64 runtime of {wanted} in build/aarch64; run tools/aarch64.sh")
    return Emulator(tmp_path_factory.mktemp("aarch64"))
