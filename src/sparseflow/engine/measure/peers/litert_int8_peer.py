"""LiteRT's CPU delegate (XNNPACK) on a model that Google's converter and quantiser made from torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sparseflow.engine.measure.peers.base import PEERS, Array, Peer, Subject, require, torch_inputs
from sparseflow.engine.measure.peers.quantising import quantising, silent
from sparseflow.errors import CompileError

NAME = "litert-int8"
SIGNATURE = "serving_default"
"""The converter's name for a model's only function; its inputs are ``args_0`` …, its outputs ``output_0`` …"""


@PEERS.register(NAME)
class LiteRtInt8Peer(Peer):
    """Convolutions, linear layers and what else the quantiser knows in int8; inputs and outputs stay float32.

    References
    ----------
    AI Edge Quantizer, recipe ``static_wi8_ai8``: int8 weights with a scale per channel, int8 maps with ranges from
    calibration.
    """

    package: ClassVar[str] = "ai_edge_litert"
    needs: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_quantizer")
    quantised: ClassVar[bool] = True
    install: ClassVar[str] = "litert-torch && python -m pip install 'typing_extensions>=4.13'"

    def __init__(self, interpreter: Any) -> None:
        interpreter.allocate_tensors()
        self._interpreter = interpreter
        runner = interpreter.get_signature_runner(SIGNATURE)  # not kept: it would forbid calls
        self._inputs = _in_order(runner.get_input_details())
        self._outputs = _in_order(runner.get_output_details())

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> LiteRtInt8Peer:
        """An interpreter of `model`.

        Raises
        ------
        CompileError
            If the model is an ONNX graph, a package is not installed, or an input is dropped in the conversion, as
            those are that the model does not read.
        """
        if subject.is_onnx:
            raise CompileError(
                f"peer {NAME}: its converter reads torch models, {subject.label} is ONNX; leave it out of --against"
            )
        with silent():
            for package in (cls.package, *cls.needs):
                require(package, cls.install, NAME)
        interpreter = require(f"{cls.package}.interpreter").Interpreter
        peer = cls(interpreter(model_content=cls.model(subject, folder), num_threads=threads))
        found, wanted = len(peer._inputs), len(subject.inputs)
        if found != wanted:
            raise CompileError(
                f"peer {NAME}: it reads {found} of the model's {wanted} inputs; leave it out of --against"
            )
        return peer

    @classmethod
    def model(cls, subject: Subject, folder: Path) -> bytes:
        """The quantised model, calibrated with the subject's calls.

        Raises
        ------
        CompileError
            If it cannot be converted or quantised.
        """
        with quantising(NAME, subject), tempfile.TemporaryDirectory(dir=folder) as work:
            return _quantise(subject, Path(work) / "float.tflite")

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Every call copies its inputs in and its outputs out, as the interpreter's interface has it."""
        run = self._interpreter
        for detail, array in zip(self._inputs, inputs, strict=True):
            run.set_tensor(detail["index"], np.asarray(array, detail["dtype"]))
        run.invoke()
        return [run.get_tensor(detail["index"]) for detail in self._outputs]


def _quantise(subject: Subject, path: Path) -> bytes:
    """Converts the model into the file ``path``, and quantises that."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.qtyping import TFLOperationName

    exported = isinstance(subject.model, torch.export.ExportedProgram)
    module = subject.model.module() if exported else subject.model
    litert_torch.convert(module, torch_inputs(subject.inputs)).export(str(path))
    details = Interpreter(str(path)).get_signature_runner(SIGNATURE).get_input_details()
    calls = [
        {
            f"args_{i}": np.asarray(array, details[f"args_{i}"]["dtype"])
            for i, array in enumerate(call)
            if f"args_{i}" in details
        }
        for call in subject.calls
    ]
    tool = quantizer.Quantizer(str(path))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    for kept in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(regex=".*", operation_name=kept, algorithm_key="no_quantize")
    return bytes(tool.quantize(tool.calibrate({SIGNATURE: calls})).quantized_model)


def _in_order(details: dict[str, Any]) -> list[Any]:
    """The tensors of a signature by the number at the end of their names."""
    return [details[name] for name in sorted(details, key=lambda name: (len(name), name))]
