"""ONNX Runtime on the CPU provider, all graph optimisations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sparseflow.engine.measure.peers.base import PEERS, Array, Peer, Subject, require


@PEERS.register("onnxruntime")
class OnnxRuntimePeer(Peer):
    """A session with as many intra-operator threads as asked for and none between operators."""

    package: ClassVar[str] = "onnxruntime"

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [value.name for value in session.get_inputs()]

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> OnnxRuntimePeer:
        """A session on `graph`."""
        ort = require(cls.package)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        path = cls.graph(subject, folder)
        return cls(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    @classmethod
    def graph(cls, subject: Subject, folder: Path) -> Path:
        """The file that the session reads."""
        return subject.as_onnx(folder)

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        feed = dict(zip(self._names, inputs, strict=True))
        return list(self._session.run(None, feed))
