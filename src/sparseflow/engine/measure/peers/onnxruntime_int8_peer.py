"""ONNX Runtime on a graph that its own tool quantised to int8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sparseflow.engine.measure.peers.base import PEERS, Array, Subject, require
from sparseflow.engine.measure.peers.onnxruntime_peer import OnnxRuntimePeer
from sparseflow.engine.measure.peers.quantising import quantising
from sparseflow.engine.target.machine import cpu_flags

VNNI = frozenset({"avx512vnni", "avxvnni"})


@PEERS.register("onnxruntime-int8")
class OnnxRuntimeInt8Peer(OnnxRuntimePeer):
    """The settings of the float32 peer, on a graph with ``QuantizeLinear`` and ``DequantizeLinear`` around operators.

    References
    ----------
    ONNX Runtime, "Quantize ONNX models", and the notes on x86 at ``quantize_static``: QDQ format, maps in uint8,
    weights in int8, in seven bits where the processor lacks VNNI, all operators that it knows. Weights have a scale
    per channel. Shape inference and the basic graph optimisations come first.
    """

    needs: ClassVar[tuple[str, ...]] = ("onnx",)
    quantised: ClassVar[bool] = True

    @classmethod
    def graph(cls, subject: Subject, folder: Path) -> Path:
        """The quantised graph, written on the first call, calibrated with the subject's calls.

        Raises
        ------
        CompileError
            If a package is not installed or the tool cannot quantise the model.
        """
        target = folder / "model.int8.onnx"
        if target.exists():
            return target
        require("onnx", cls.install, "onnxruntime-int8")
        source = subject.as_onnx(folder)
        with quantising("onnxruntime-int8", subject), tempfile.TemporaryDirectory(dir=folder) as work:
            _quantise(subject, source, Path(work))
            os.replace(Path(work) / "quantised.onnx", target)
        return target


def _quantise(subject: Subject, source: Path, work: Path) -> None:
    """Writes ``quantised.onnx`` into ``work``."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(str(source))
    names = _fix_shapes(model.graph, subject.inputs)
    fixed, prepared = work / "fixed.onnx", work / "prepared.onnx"
    onnx.save(model, str(fixed))
    quant_pre_process(str(fixed), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(work / "quantised.onnx"),
        _Calls([dict(zip(names, call, strict=True)) for call in subject.calls]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not VNNI & cpu_flags(),
    )


def _fix_shapes(graph: Any, inputs: Sequence[Array]) -> list[str]:
    """Gives the graph's inputs the shapes of ``inputs``, so that all others follow; returns their names."""
    constants = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in constants]
    for value, array in zip(values, inputs, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
            dimension.dim_value = size
    return [value.name for value in values]


class _Calls:
    """The calls as ONNX Runtime's calibration reads them."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """The next call's inputs by name; None after the last."""
        return next(self._left, None)
