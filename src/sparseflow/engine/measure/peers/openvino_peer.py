"""OpenVINO's CPU plugin: latency hint, one stream, float32 kept float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sparseflow.engine.measure.peers.base import PEERS, Array, Peer, Subject, require


@PEERS.register("openvino")
class OpenVinoPeer(Peer):
    """A compiled model with its shapes fixed, so that nothing is planned anew at run time."""

    package: ClassVar[str] = "openvino"

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._count = len(compiled.outputs)

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> OpenVinoPeer:
        """Compiled from `model`; bf16, its default where the processor has it, is refused."""
        openvino = require(cls.package)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return cls(openvino.Core().compile_model(cls.model(subject, folder), "CPU", settings))

    @classmethod
    def model(cls, subject: Subject, folder: Path) -> Any:
        """The ``openvino.Model`` of the model's ONNX form, with the inputs' shapes."""
        model = require(cls.package).Core().read_model(str(subject.as_onnx(folder)))
        model.reshape({port: list(a.shape) for port, a in zip(model.inputs, subject.inputs, strict=True)})
        return model

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self._request.infer(list(inputs), share_inputs=True)
        return [self._request.get_output_tensor(i).data for i in range(self._count)]
