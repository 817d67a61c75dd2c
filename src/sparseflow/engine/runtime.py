"""The compiled engine: call, measure, profile, save, load. Needs TVM's runtime only: no torch, no compiler."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm.runtime.vm import VirtualMachine

from sparseflow.core.plan import Measurement, OperatorTime, Plan
from sparseflow.engine.machine import machine_name
from sparseflow.engine.targets import linker, not_here
from sparseflow.errors import EngineError, InputError

Array = npt.NDArray[Any]
MANIFEST, CODE, WEIGHTS = "manifest.json", "code.so", "weights.npz"
FORMAT = 1


@dataclass(frozen=True)
class Signature:
    """One input or output: its name, static shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of an engine besides its code and weights."""

    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    plan: Plan
    calls: tuple[tuple[str, str], ...]
    target: str
    machine: str
    flags: tuple[str, ...]
    architecture: str
    threads: int
    tvm_version: str
    sparseflow_version: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `from_json` reads back."""
        return {**asdict(self), "plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_json`."""

        def signatures(items: list[dict[str, Any]]) -> tuple[Signature, ...]:
            return tuple(Signature(d["name"], tuple(d["shape"]), d["dtype"]) for d in items)

        return cls(
            **{
                **data,
                "inputs": signatures(data["inputs"]),
                "outputs": signatures(data["outputs"]),
                "plan": Plan.from_json(data["plan"]),
                "calls": tuple((a, b) for a, b in data["calls"]),
                "flags": tuple(data["flags"]),
                "threads": int(data["threads"]),
            }
        )


class Engine:
    """A compiled network.

    Call it with NumPy arrays or torch tensors of the shapes in `inputs`; the results are of the same kind, a single one
    bare, several as a tuple. One engine is not to be called from several Python threads at once. An engine for another
    machine can only be saved and explained.

    Attributes
    ----------
    plan : Plan
        Every layer with weights, its kernel, all candidates' times and the reasons of the rejected.
    inputs, outputs : tuple of Signature
    """

    def __init__(self, executable: Any, weights: Mapping[str, Any], manifest: Manifest) -> None:
        self._executable, self.manifest = executable, manifest
        self._weights = dict(weights)
        self._foreign = not_here(manifest.architecture, manifest.flags)
        if self._foreign is None:
            self._set_threads(manifest.threads)
            self._vm = VirtualMachine(executable, tvm.cpu())
            self._main = self._vm["main"]

    @property
    def plan(self) -> Plan:
        """What the compiler decided for every layer with weights."""
        return self.manifest.plan

    @property
    def inputs(self) -> tuple[Signature, ...]:
        """Names, shapes and dtypes of the arguments."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Signature, ...]:
        """Names, shapes and dtypes of the results."""
        return self.manifest.outputs

    @property
    def threads(self) -> int:
        """Threads that one call uses."""
        return self.manifest.threads

    def with_plan(self, plan: Plan) -> Engine:
        """The same engine with another record of what was decided."""
        return Engine(self._executable, self._weights, replace(self.manifest, plan=plan))

    def explain(self) -> Plan:
        """The plan: per layer the structure found, formats, bytes, the chosen kernel and why others were not."""
        return self.plan

    def __call__(self, *inputs: Any) -> Any:
        """Runs the network.

        Raises
        ------
        InputError
            If the number, a shape or a dtype of the inputs is not that of the engine.
        EngineError
            If the engine is for another machine.
        """
        tensors = self._tensors(inputs)
        results = self._results(self._main(*tensors, *self._weights.values()))
        if any(type(x).__module__.startswith("torch") for x in inputs):
            import torch

            converted: list[Any] = [torch.from_dlpack(r) for r in results]
        else:
            converted = [np.from_dlpack(r) for r in results]
        return converted[0] if len(converted) == 1 else tuple(converted)

    def measure(self, *inputs: Any, repeats: int = 30, warmup: int = 3) -> Measurement:
        """Time of a call on these inputs, conversion from and to the caller's arrays excluded."""
        tensors = self._tensors(inputs)
        samples = []
        for i in range(warmup + repeats):
            start = time.perf_counter()
            self._main(*tensors, *self._weights.values())
            if i >= warmup:
                samples.append(time.perf_counter() - start)
        return Measurement.of(samples, self.threads, machine_name())

    def profile(self, *inputs: Any, repeats: int = 20) -> list[OperatorTime]:
        """Median time of every operator of one call, in the order in which they run."""
        tensors = self._tensors(inputs)
        runs: list[list[tuple[str, float]]] = []
        begun = 0.0

        def observe(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
            nonlocal begun
            if before:
                begun = time.perf_counter()
            else:
                runs[-1].append((str(symbol), time.perf_counter() - begun))
            return 0

        vm = VirtualMachine(self._executable, tvm.cpu())
        vm.set_instrument(observe)
        for _ in range(repeats + 2):
            runs.append([])
            vm["main"](*tensors, *self._weights.values())
        kept = runs[2:]
        return self._operators([s for s, _ in kept[0]], [[t for _, t in run] for run in kept])

    def _operators(self, symbols: list[str], times: list[list[float]]) -> list[OperatorTime]:
        medians = [float(np.median(column)) for column in zip(*times, strict=True)]
        labels: dict[str, list[str]] = {}
        for kernel, label in self.manifest.calls:
            labels.setdefault(kernel, []).append(label)
        kept = [(s, t) for s, t in zip(symbols, medians, strict=True) if not s.startswith("vm.builtin")]
        total = sum(t for _, t in kept)
        found = []
        for symbol, seconds in kept:
            waiting = labels.get(symbol)
            found.append(
                OperatorTime(waiting.pop(0) if waiting else symbol, symbol, seconds, seconds / total)
            )
        return found

    def save(self, path: str | os.PathLike[str], cxx: str | None = None) -> Path:
        """Writes the engine as a folder: code, weights and a manifest. Linking needs a C++ compiler.

        An engine that stands at ``path`` is replaced when the new one is complete. ``cxx`` is the compiler that links;
        default: this machine's, or for another architecture ``<architecture>-linux-gnu-g++``.

        Raises
        ------
        EngineError
            If ``path`` exists and is not an engine, there is no compiler to link with, or the disk refuses.
        """
        target = Path(path)
        if target.exists() and not (target / MANIFEST).is_file():
            raise EngineError(
                f"{target}: exists and is not an engine; choose another path or delete it first"
            )
        compiler = linker(self.manifest.architecture, cxx)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise EngineError(f"{target}: cannot be written ({error}); choose another path") from error
        old = work.with_name(work.name + ".old")
        try:
            self._write(work, compiler)
            if target.exists():
                os.replace(target, old)
            work.chmod(0o755)
            os.replace(work, target)
        except (OSError, RuntimeError) as error:  # RuntimeError: the linker failed
            if old.exists() and not target.exists():
                os.replace(old, target)
            first = (str(error).strip().splitlines() or ["unknown cause"])[0]
            raise EngineError(f"{target}: the engine was not saved ({first}); nothing was changed") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return target

    def _write(self, folder: Path, compiler: str) -> None:
        with _without_notices():
            self._executable.export_library(str(folder / CODE), cc=compiler)
        arrays: dict[str, Any] = {k: np.asarray(v.numpy()) for k, v in self._weights.items()}
        np.savez(folder / WEIGHTS, **arrays)
        sums = {name: _sha256(folder / name) for name in (CODE, WEIGHTS)}
        manifest = {"format": FORMAT, "sha256": sums, **self.manifest.to_json()}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Engine:
        """Reads an engine that `save` wrote.

        Raises
        ------
        EngineError
            If it is missing, truncated, of another format, or for another processor.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        _check_machine(folder, manifest)
        try:
            with _without_notices():
                module = tvm.runtime.load_module(str(folder / CODE))
            with np.load(folder / WEIGHTS, allow_pickle=False) as file:
                weights = {name: _tensor(file[name]) for name in file.files}
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or ["unreadable"])[0]
            raise EngineError(f"{folder}: the engine cannot be loaded ({first}); compile it anew") from error
        return cls(module, weights, manifest)

    def _tensors(self, inputs: Sequence[Any]) -> list[Any]:
        if self._foreign is not None:
            raise EngineError(f"the engine was {self._foreign}; save it and run it there")
        if len(inputs) != len(self.inputs):
            names = ", ".join(s.name for s in self.inputs)
            raise InputError(f"{len(inputs)} inputs given, {len(self.inputs)} expected: {names}")
        return [checked(x, s) for x, s in zip(inputs, self.inputs, strict=True)]

    def _results(self, result: Any) -> list[Any]:
        return [result] if len(self.outputs) == 1 and hasattr(result, "shape") else list(result)

    @staticmethod
    def _set_threads(threads: int) -> None:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)


def checked(x: Any, signature: Signature) -> Any:
    """The input as a TVM tensor: the caller's own memory where its alignment allows, else a copy."""
    shape = tuple(int(n) for n in getattr(x, "shape", ()))
    dtype = str(getattr(x, "dtype", type(x).__name__)).removeprefix("torch.")
    if shape != signature.shape or dtype != signature.dtype:
        raise InputError(
            f"input {signature.name!r}: {dtype}{list(shape)} given, {signature.dtype}{list(signature.shape)} expected"
        )
    if hasattr(x, "detach"):
        x = x.detach().contiguous()
        address = x.data_ptr()
    else:
        x = np.asarray(x, order="C")
        address = x.ctypes.data
    if address % 64 or (isinstance(x, np.ndarray) and not x.flags.writeable):
        return _tensor(np.asarray(x))
    return tvm.runtime.from_dlpack(x)


def _tensor(array: Array) -> Any:
    out = tvm.runtime.empty(array.shape, str(array.dtype))
    out.copyfrom(np.asarray(array, order="C"))
    return out


_NOTICE = re.compile("Scope (Loaded|Saving):")


@contextmanager
def _without_notices() -> Iterator[None]:
    """Drops TVM's notice of each memory scope it saves or loads, written to the process's standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines()
            sys.stderr.writelines(f"{line}\n" for line in lines if not _NOTICE.search(line))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved engine whose files are whole.

    Raises
    ------
    EngineError
        If the folder is no engine, is truncated or was written by another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise EngineError(
            f"{folder}: no engine here ({MANIFEST} is missing); give a folder that `compile -o` wrote"
        )
    try:
        data = json.loads(path.read_text())
        found, sums = data.pop("format"), data.pop("sha256")
        if found != FORMAT:
            raise EngineError(
                f"{folder}: engine format {found}, this version reads {FORMAT}; compile it anew"
            )
        manifest = Manifest.from_json(data)
        sums = {name: str(sums[name]) for name in (CODE, WEIGHTS)}
    except EngineError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise EngineError(f"{path}: the manifest is damaged; compile the engine anew") from error
    for name, expected in sums.items():
        if not (folder / name).is_file() or _sha256(folder / name) != expected:
            raise EngineError(
                f"{folder / name}: truncated or changed since it was written; compile the engine anew"
            )
    return manifest


def _check_machine(folder: Path, manifest: Manifest) -> None:
    foreign = not_here(manifest.architecture, manifest.flags)
    if foreign is not None:
        raise EngineError(f"{folder}: {foreign}; compile it for this machine")
    if manifest.tvm_version != tvm.__version__:
        raise EngineError(
            f"{folder}: compiled with TVM {manifest.tvm_version}, installed is {tvm.__version__}; compile it anew"
        )
