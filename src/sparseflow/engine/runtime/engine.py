"""The compiled engine: call, measure, profile, save, load. Needs TVM's runtime only: no torch, no compiler."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

from sparseflow.core.checks import whole_number
from sparseflow.core.files import complete_folder
from sparseflow.core.plan import Measurement, OperatorTime, Plan
from sparseflow.engine.runtime.manifest import (
    CODE,
    MANIFEST,
    Manifest,
    Signature,
    read_manifest,
    read_weights,
    write_manifest,
    write_weights,
)
from sparseflow.engine.runtime.memory import device_copy, device_tensors, is_torch
from sparseflow.engine.runtime.threads import set_threads
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import device, kind_of, linker, not_here
from sparseflow.errors import EngineError, InputError, first_line
from sparseflow.kernels.notices import without_notices


class Engine:
    """A compiled network.

    Call it with NumPy arrays or torch tensors of the shapes in `inputs`; the results are of the same kind, a single one
    bare, several as a tuple. Other libraries' arrays in the CPU's memory are read too, by ``__dlpack__`` or
    ``__array__``; their results are NumPy arrays. An engine for another machine can only be saved and explained.

    Several Python threads may call one engine: it takes their calls one after the other, and `measure` and `profile`
    as a whole. Calls of different engines run at once.

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
        self._turn = threading.Lock()  # the virtual machine keeps the state of one call
        if self._foreign is None:
            self._vm = VirtualMachine(executable, device(self.manifest.target))
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
        """Threads that the kernels were compiled for; a machine with fewer CPUs runs them on those."""
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
            If the number, a shape or a dtype of the inputs is not that of the engine, or an input's values are not in
            the CPU's memory.
        EngineError
            If the engine is for another machine.
        """
        tensors = self._tensors(inputs)
        with self._turn:
            set_threads(self.threads)
            results = self._results(self._main(*tensors, *self._weights.values()))
        if any(is_torch(x) for x in inputs):
            import torch

            converted: list[Any] = [torch.from_dlpack(r) for r in results]
        else:
            converted = [np.from_dlpack(r) for r in results]
        return converted[0] if len(converted) == 1 else tuple(converted)

    def measure(self, *inputs: Any, repeats: int = 30, warmup: int = 3) -> Measurement:
        """Time of a call on these inputs, conversion from and to the caller's arrays excluded.

        Parameters
        ----------
        *inputs
            As of a call.
        repeats, warmup : int
            Calls that are timed, after others that are not.

        Raises
        ------
        InputError
            As a call does, and if there is nothing to time.
        """
        repeats = whole_number("repeats", repeats, 1, None, InputError)
        warmup = whole_number("warmup", warmup, 0, None, InputError)
        tensors = self._tensors(inputs)
        samples = []
        with self._turn:
            threads = set_threads(self.threads)
            for i in range(warmup + repeats):
                start = time.perf_counter()
                self._main(*tensors, *self._weights.values())
                if i >= warmup:
                    samples.append(time.perf_counter() - start)
        return Measurement.of(samples, threads, machine_name())

    def profile(self, *inputs: Any, repeats: int = 20) -> list[OperatorTime]:
        """Median time of every operator of one call, in the order in which they run.

        Raises
        ------
        InputError
            As a call does, and if there is nothing to time.
        """
        repeats = whole_number("repeats", repeats, 1, None, InputError)
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

        vm = VirtualMachine(self._executable, device(self.manifest.target))
        vm.set_instrument(observe)
        with self._turn:
            set_threads(self.threads)
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
        compiler = linker(kind_of(self.manifest.target), self.manifest.architecture, cxx)
        try:
            with complete_folder(target) as work:
                self._write(work, compiler)
        except (OSError, RuntimeError) as error:  # RuntimeError: the linker failed
            raise EngineError(
                f"{target}: the engine was not saved ({first_line(error)}); nothing was changed"
            ) from error
        return target

    def _write(self, folder: Path, compiler: str) -> None:
        with without_notices():
            self._executable.export_library(str(folder / CODE), cc=compiler)
        write_weights(folder, {k: np.asarray(v.numpy()) for k, v in self._weights.items()})
        write_manifest(folder, self.manifest)

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
        weights = {k: device_copy(a) for k, a in read_weights(folder, manifest.weights).items()}
        try:
            with without_notices():
                module = tvm.runtime.load_module(str(folder / CODE))
            return cls(module, weights, manifest)
        except (
            OSError,
            ValueError,
            RuntimeError,
            AttributeError,
        ) as error:  # AttributeError: no engine's code
            raise EngineError(
                f"{folder}: the engine cannot be loaded ({first_line(error)}); compile it anew"
            ) from error

    def _tensors(self, inputs: Sequence[Any]) -> list[Any]:
        if self._foreign is not None:
            raise EngineError(f"the engine was {self._foreign}; save it and run it there")
        return device_tensors(inputs, self.inputs)

    def _results(self, result: Any) -> list[Any]:
        return [result] if len(self.outputs) == 1 and hasattr(result, "shape") else list(result)


def _check_machine(folder: Path, manifest: Manifest) -> None:
    foreign = not_here(manifest.architecture, manifest.flags)
    if foreign is not None:
        raise EngineError(f"{folder}: {foreign}; compile it for this machine")
    if manifest.tvm_version != tvm.__version__:
        raise EngineError(
            f"{folder}: compiled with TVM {manifest.tvm_version}, installed is {tvm.__version__}; compile it anew"
        )
