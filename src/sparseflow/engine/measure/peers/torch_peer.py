"""PyTorch eager: oneDNN kernels under `torch.inference_mode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sparseflow.engine.measure.peers.base import PEERS, Array, Peer, Subject, require, torch_inputs
from sparseflow.errors import CompileError


@PEERS.register("torch")
class TorchPeer(Peer):
    """The module itself, or that of an exported program."""

    package: ClassVar[str] = "torch"

    def __init__(self, module: Callable[..., Any], threads: int) -> None:
        self._module, self._threads = module, threads

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> TorchPeer:
        """Raises `CompileError` for an ONNX model, which torch does not run."""
        torch = require("torch")
        if subject.is_onnx:
            raise CompileError(
                f"peer torch: cannot run the ONNX model {subject.label}; leave it out of --against"
            )
        module = subject.model
        if isinstance(module, torch.export.ExportedProgram):
            module = module.module()
        return cls(module, threads)

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                outputs = self._module(*torch_inputs(inputs))
        finally:  # a process-wide setting: another part's sums must not depend on who ran a peer
            torch.set_num_threads(before)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return [output.resolve_conj().resolve_neg().numpy() for output in outputs]
