"""What a peer is, the registry of peers, and the model that all of them are given."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from sparseflow.errors import CompileError, ImportModelError, SparseflowError, first_line
from sparseflow.registry import Registry

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Subject:
    """A model to be timed, with its inputs.

    Attributes
    ----------
    label : str
        What the user called it: ``zoo:resnet50`` or a file's name.
    model : torch.nn.Module, torch.export.ExportedProgram or onnx.ModelProto
    inputs : tuple of ndarray
        One array per input, in order.
    sparsify : str
        How its weights were pruned for this run (``block:4x1@0.9``); empty if they were not.
    weights : str
        Where its weights come from.
    imported : Imported, optional
        Its import, if it was imported already.
    calibration : tuple of tuple of ndarray
        Calls from which quantised peers take the ranges of feature maps; none: from ``inputs``.
    """

    label: str
    model: Any
    inputs: tuple[Array, ...]
    sparsify: str = ""
    weights: str = "as in the file"
    imported: Any = None
    calibration: tuple[tuple[Array, ...], ...] = ()

    @property
    def calls(self) -> tuple[tuple[Array, ...], ...]:
        """What quantised peers are calibrated with."""
        return self.calibration or (self.inputs,)

    @property
    def is_onnx(self) -> bool:
        """Whether the model is an ONNX graph, so that torch cannot run it."""
        return type(self.model).__name__ == "ModelProto"

    def as_onnx(self, folder: Path) -> Path:
        """A file of the model in ``folder``, written on the first call.

        Raises
        ------
        ImportModelError
            If torch cannot write the model as ONNX.
        """
        path = folder / "model.onnx"
        if not path.exists():
            model = self.model if self.is_onnx else _exported(self)
            import onnx

            onnx.save(model, str(path))
        return path


class Peer(Protocol):
    """An engine that runs one model.

    Attributes
    ----------
    package : str
        The Python package that it runs in.
    needs : tuple of str
        Modules that it imports besides.
    quantised : bool
        Whether it computes in int8: its error is recorded and no reason to refuse it (`accepted`).
    install : str
        What ``pip install`` takes to install it.
    """

    package: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    quantised: ClassVar[bool] = False
    install: ClassVar[str] = "'sparseflow[peers]'"

    @classmethod
    def make(cls, subject: Subject, threads: int, folder: Path) -> Peer:
        """The peer, compiled for ``subject``; ``folder`` is for temporary files."""

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs for ``inputs``."""


PEERS: Registry[type[Peer]] = Registry("peer")


def float_peers() -> tuple[str, ...]:
    """Names of the peers that compute in float32, installed or not."""
    return tuple(name for name in PEERS if not PEERS[name].quantised)


def installed(quantised: bool = False) -> tuple[str, ...]:
    """Names of the float or of the quantised peers whose packages are here, in the order of registration."""

    def here(peer: type[Peer]) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in (peer.package, *peer.needs))

    return tuple(name for name in PEERS if PEERS[name].quantised is quantised and here(PEERS[name]))


def accepted(name: str, error: float, limit: float) -> bool:
    """Whether engine ``name`` may be timed when its outputs differ from the reference's by ``error``.

    Every engine within ``limit`` may, and a quantised peer whatever its error is, as long as its outputs have the
    reference's shapes and are finite.
    """
    quantised = name in PEERS and PEERS[name].quantised
    return math.isfinite(error) if quantised else error <= limit


def version(name: str) -> str:
    """The version of a peer's package, with those of the others that it needs: ``2026.4.1, nncf 3.4.0``."""
    peer = PEERS[name]
    others = [f"{module} {importlib.metadata.version(module)}" for module in peer.needs]
    return ", ".join((importlib.metadata.version(peer.package), *others))


def prepared(
    subject: Subject,
    names: Iterable[str],
    threads: int,
    folder: Path,
    tell: tuple[Callable[[str], None], Callable[[str, str], None]],
) -> Iterator[tuple[str, Peer, float]]:
    """The named peers that can run the subject, with the seconds that each took to prepare.

    ``tell`` is told what is being done, and name and reason of those that cannot.
    """
    say, left_out = tell
    for name in names:
        say(f"quantise for {name}" if PEERS[name].quantised else f"prepare {name}")
        start = time.perf_counter()
        try:
            peer = PEERS[name].make(subject, threads, folder)
        except (SparseflowError, RuntimeError) as error:
            left_out(name, first_line(error))
        else:
            yield name, peer, time.perf_counter() - start


def require(package: str, install: str = Peer.install, peer: str = "") -> Any:
    """The imported package; ``install`` as in `Peer`, ``peer`` where its name is not the package's.

    Raises
    ------
    CompileError
        If it is not installed; the line says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        where = f"{peer}: {package}" if peer else package
        raise CompileError(
            f"peer {where}: not installed; python -m pip install {install}, or leave it out of --against"
        ) from error


def torch_inputs(arrays: Sequence[Array]) -> tuple[Any, ...]:
    """The arrays as torch tensors that share their memory."""
    import torch

    return tuple(torch.from_numpy(array) for array in arrays)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard output, where C++ code writes its settings and a caller may write JSON."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _exported(subject: Subject) -> Any:
    torch = sys.modules["torch"]
    require("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    arguments = torch_inputs(subject.inputs) if isinstance(subject.model, torch.nn.Module) else ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(subject.model, arguments, dynamo=True, verbose=False)
    except Exception as error:
        reason = first_line(error)
        raise ImportModelError(f"{subject.label}: torch.onnx.export cannot write it: {reason}") from error
    return program.model_proto
