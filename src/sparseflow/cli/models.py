"""MODEL on the command line → a model with inputs, pruned if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow.errors import ImportModelError, needs

if TYPE_CHECKING:
    from sparseflow.engine.frontends.importer import Imported
    from sparseflow.engine.runtime.manifest import Signature
    from sparseflow.engine.sparsify import Sparsified

ZOO_PREFIX = "zoo:"
SEED = 0


@dataclass(frozen=True)
class ModelRequest:
    """What the user asked for.

    Attributes
    ----------
    text : str
        ``zoo:NAME`` or a path.
    sparsify : str, optional
        ``STRUCTURE@SPARSITY``.
    include : sequence of str
        Roles that are pruned too.
    shapes : dict
        Input name → shape.
    batch : int
        Of a zoo model.
    """

    text: str
    sparsify: str | None = None
    include: Sequence[str] = ()
    shapes: dict[str, tuple[int, ...]] | None = None
    batch: int = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model as read, pruned if that was asked for.

    Attributes
    ----------
    label : str
        What the user called it.
    model : nn.Module, ExportedProgram or ModelProto
    examples : tuple of ndarray or None
        Inputs that came with it.
    weights : str
        Where its weights come from, for labels.
    sparsified : Sparsified or None
    """

    label: str
    model: Any
    examples: tuple[np.ndarray[Any, Any], ...] | None
    weights: str
    shapes: dict[str, tuple[int, ...]]
    sparsified: Sparsified | None = None

    @property
    def sparsify(self) -> str:
        """The text of the pruning asked for, or empty."""
        return self.sparsified.spec.text if self.sparsified is not None else ""

    def imported(self) -> Imported:
        """The model as the compiler takes it."""
        from sparseflow.engine.frontends.importer import import_model
        from sparseflow.engine.measure.peers.base import torch_inputs

        examples = None if self.examples is None else torch_inputs(self.examples)
        return import_model(self.model, examples, self.shapes or None)

    def inputs(self, specs: Sequence[Signature]) -> tuple[np.ndarray[Any, Any], ...]:
        """The example inputs, or seeded random ones of ``specs``."""
        given = self.examples
        if given is not None and [a.shape for a in given] == [s.shape for s in specs]:
            return given
        return random_inputs(specs)

    def calibration(
        self, specs: Sequence[Signature], data: str | None, samples: int, precision: str
    ) -> list[tuple[np.ndarray[Any, Any], ...]] | None:
        """The calls to calibrate with: those of ``data``; for int8 and random weights random ones will do."""
        from sparseflow.cli.calibration import calibration_calls

        calls = calibration_calls(data, specs, samples)
        if calls is None and precision in ("int8", "auto") and self.examples is not None:
            return [self.inputs(specs)]
        return calls


def random_inputs(specs: Sequence[Any], seed: int = SEED) -> tuple[np.ndarray[Any, Any], ...]:
    """Seeded inputs of the given shapes and dtypes: normal numbers, 0 and 1 for integers and truth values."""
    rng = np.random.default_rng(seed)

    def one(spec: Any) -> np.ndarray[Any, Any]:
        floating = np.issubdtype(np.dtype(spec.dtype), np.floating)
        values = rng.normal(size=spec.shape) if floating else rng.integers(0, 2, size=spec.shape)
        return np.asarray(values, spec.dtype)

    return tuple(one(spec) for spec in specs)


def load_model(request: ModelRequest) -> LoadedModel:
    """The model that a request names.

    Raises
    ------
    ImportModelError
        If there is no such file, it is unreadable, or an option does not apply to it.
    RegistryError
        If the zoo has no such model.
    StructureError
        If the structure fits no layer or its text cannot be read.
    """
    from sparseflow.core import parse_sparsify

    spec = parse_sparsify(request.sparsify) if request.sparsify is not None else None
    loaded = _from_zoo(request) if request.text.startswith(ZOO_PREFIX) else _from_file(request)
    if spec is None:
        return loaded
    from dataclasses import replace

    from sparseflow.engine.sparsify import sparsify

    return replace(loaded, sparsified=sparsify(loaded.model, spec, request.include))


def _from_zoo(request: ModelRequest) -> LoadedModel:
    if request.shapes:
        raise ImportModelError(
            f"{request.text}: --shape binds dimensions of files; use --batch for a zoo model"
        )
    with needs("train", request.text, ImportModelError):
        from sparseflow import zoo
    module, examples = zoo.build(request.text.removeprefix(ZOO_PREFIX), batch=request.batch, seed=SEED)
    return LoadedModel(request.text, module, tuple(t.numpy() for t in examples), "seeded random weights", {})


def _from_file(request: ModelRequest) -> LoadedModel:
    from sparseflow.engine.frontends.importer import read_model

    if request.batch != 1:
        raise ImportModelError(
            f"{request.text}: --batch is for zoo models; use --shape NAME=SIZES for a file"
        )
    model = read_model(Path(request.text))
    return LoadedModel(request.text, model, None, "as in the file", dict(request.shapes or {}))
