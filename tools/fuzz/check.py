"""One case: compiled, run twice and held against torch in float64."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sparseflow
from sparseflow.core import parse_sparsify
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.sparsify import sparsify
from sparseflow.errors import SparseflowError

from .generate import Case
from .network import Module, example

RIGHT, REFUSED, WRONG, CRASH, HANG = "right", "refused", "wrong", "crash", "hang"
FAILURES = (WRONG, CRASH, HANG)
ULP = 2.0**-23
SLACK, WINOGRAD_SLACK = 64, 2000
"""Units in the last place of its largest element by which each step's result may be off; Winograd's rounding error is
larger by design, see docs/kernels.md."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    kind : str
        ``right``, ``refused`` (by one of the project's errors), ``wrong``, ``crash`` or ``hang``.
    detail : str
    seconds : float
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0


def check(case: Case) -> Outcome:
    """The outcome of a case; any exception that is not the project's is a crash."""
    warnings.simplefilter("ignore")
    model, inputs = prepared(case)
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine = _engine(case, model, inputs, Path(folder))
    except SparseflowError as error:
        return Outcome(REFUSED, str(error))
    given = [x.clone() for x in inputs]
    first, second = (_several(engine(*inputs)) for _ in range(2))
    if any(not torch.equal(a, b) for a, b in zip(given, inputs, strict=True)):
        return Outcome(WRONG, "an input was written to")
    if any(not torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        return Outcome(WRONG, "two calls gave different results")
    return compared(case, model, inputs, first)


def prepared(case: Case) -> tuple[Module, tuple[Any, ...]]:
    """The pruned model and its inputs; a structure that does not fit leaves the weights dense."""
    model = Module(case.network, case.seed)
    if case.sparsify:
        try:
            sparsify(model, parse_sparsify(case.sparsify))
        except SparseflowError:
            model = Module(case.network, case.seed)
    return model, example(case.network, case.seed)


def _engine(case: Case, model: Module, inputs: tuple[Any, ...], folder: Path) -> Engine:
    source: Any = model
    if case.route == "pt2":
        source = folder / "model.pt2"
        torch.export.save(torch.export.export(model, inputs), source)
    elif case.route == "onnx":
        source = folder / "model.onnx"
        try:
            torch.onnx.export(model, inputs, source, dynamo=True, verbose=False)
        except (
            Exception
        ):  # torch's exporter does not know every operator: that is no result about this project
            source = model
    engine = sparseflow.compile(
        source,
        inputs if source is model else None,
        threads=case.threads,
        measure=case.measure,
        exact=case.exact,
        target=case.target,
        calibration=[inputs, inputs] if case.calibrate else None,
    )
    return Engine.load(engine.save(folder / "engine")) if case.reload else engine


def _several(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]


def compared(case: Case, model: Module, inputs: tuple[Any, ...], found: list[Any]) -> Outcome:
    """Whether results are as close to those in float64 as each step's rounding allows.

    The bound is measured: the network is run in float64 with each step's result moved by one unit in the last place of
    its largest element, and `SLACK` times the largest change of the output is allowed.
    """
    wide = copy.deepcopy(model).double()
    arguments = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        exact = _several(wide(*arguments))
        moved = [
            _several(wide(*arguments, noise=ULP, generator=torch.Generator().manual_seed(i)))
            for i in range(4)
        ]
        plain = _several(model(*inputs))
    if len(found) != len(exact):
        return Outcome(WRONG, f"{len(found)} outputs instead of {len(exact)}")
    for i, (y, wanted) in enumerate(zip(found, exact, strict=True)):
        if y.shape != wanted.shape:
            return Outcome(WRONG, f"output {i}: shape {list(y.shape)} instead of {list(wanted.shape)}")
        change = max(float((run[i] - wanted).abs().max()) for run in moved)
        own = float((plain[i].double() - wanted).abs().max())
        bound = 1e-30 + 8 * own + change * (SLACK if case.exact else WINOGRAD_SLACK)
        error = (y.double() - wanted).abs()
        if not bool((error <= bound).all()):
            return Outcome(WRONG, f"output {i}: off by {float(error.max()):.3g}, allowed {bound:.3g}")
    return Outcome(RIGHT)


def reason(detail: str) -> str:
    """A refusal's message without the names and numbers of the single case."""
    return re.sub(r"'[^']*'|\d+", "…", detail)[:160]
