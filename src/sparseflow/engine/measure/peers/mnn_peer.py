"""MNN's CPU back end, dense and with its own kernels for sparse weights.

The wheel's ``MNN.tools`` package is never imported: importing it runs ``pip install`` and opens a connection to log its
use. The converter is the extension module beneath it, run in a process of its own, because it ends the process on a
model that it cannot convert.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sparseflow.engine.measure.peers.base import PEERS, Array, Peer, Subject, quiet, require
from sparseflow.engine.weights import weighted_layers
from sparseflow.errors import CompileError

_CONVERT = "import sys; sys.path.insert(0, sys.argv[1]); import _tools; _tools.mnnconvert(sys.argv[1:])"
_TIMEOUT_S = 300.0
_SPARSE = 0.3


@PEERS.register("mnn")
class MnnPeer(Peer):
    """A session with high precision (float32 throughout); Winograd is MNN's own choice for each layer."""

    package: ClassVar[str] = "MNN"
    name: ClassVar[str] = "mnn"
    install: ClassVar[str] = "'sparseflow[mnn]'"
    flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, mnn: Any, path: Path, threads: int, names: tuple[list[str], list[str]]) -> None:
        self._mnn, (inputs, outputs) = mnn, names
        with quiet():
            self._interpreter = mnn.Interpreter(str(path))
            settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
            self._session = self._interpreter.createSession(settings)
        of = self._interpreter
        self._inputs = [of.getSessionInput(self._session, name) for name in inputs]
        self._outputs = [of.getSessionOutput(self._session, name) for name in outputs]

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> MnnPeer:
        """Converted from the model's ONNX form.

        Raises
        ------
        CompileError
            If the converter cannot read the model, or the session's input shapes are not the subject's.
        """
        mnn = require(cls.package, cls.install)
        onnx = require("onnx", cls.install)
        source = subject.as_onnx(folder)
        graph = onnx.load(str(source), load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        names = (
            [value.name for value in graph.input if value.name not in constants],
            [value.name for value in graph.output],
        )
        peer = cls(mnn, cls._convert(source, folder / f"{cls.name}.mnn"), threads, names)
        found = [tuple(tensor.getShape()) for tensor in peer._inputs]
        wanted = [array.shape for array in subject.inputs]
        if found != wanted:
            raise CompileError(
                f"peer {cls.name}: its inputs are {found}, the model's {wanted}; fix the shapes"
            )
        return peer

    @classmethod
    def _convert(cls, source: Path, target: Path) -> Path:
        package = importlib.metadata.distribution(cls.package)
        command = [
            sys.executable, "-c", _CONVERT, str(package.locate_file("")), "-f", "ONNX",
            "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "sparseflow", *cls.flags,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        if done.returncode or not target.is_file():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise CompileError(
                f"peer {cls.name}: cannot convert the model: {lines[-1] if lines else 'no output'}"
            )
        return target

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Every call copies its inputs in: a session reuses their memory for what it computes."""
        for tensor, array in zip(self._inputs, inputs, strict=True):
            tensor.copyFrom(self._host(_narrow(array)))
        self._interpreter.runSession(self._session)
        return [self._fetch(tensor) for tensor in self._outputs]

    def _host(self, array: Array) -> Any:
        mnn = self._mnn
        kind = mnn.Halide_Type_Float if array.dtype == np.float32 else mnn.Halide_Type_Int
        return mnn.Tensor(array.shape, kind, array, mnn.Tensor_DimensionType_Caffe)

    def _fetch(self, tensor: Any) -> Array:
        shape = tuple(tensor.getShape())
        host = self._host(np.empty(shape, np.float32))
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData(), np.float32).reshape(shape)


@PEERS.register("mnn-sparse")
class MnnSparsePeer(MnnPeer):
    """The same with the converter's ``--detectSparseSpeedUp``: layers that it expects to gain run on sparse weights."""

    name: ClassVar[str] = "mnn-sparse"
    flags: ClassVar[tuple[str, ...]] = ("--detectSparseSpeedUp",)

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> MnnPeer:
        """Raises `CompileError` when the weights have hardly a zero: it would be the dense run once more."""
        if not any(np.mean(layer.weight == 0) > _SPARSE for layer in weighted_layers(subject.model)):
            raise CompileError(f"peer mnn-sparse: no layer has more than {_SPARSE:.0%} zeros; use mnn")
        return super().make(subject, threads, folder)


def _narrow(array: Array) -> Array:
    """MNN has no 64-bit integers at run time."""
    wanted = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32
    return np.ascontiguousarray(array, wanted)
