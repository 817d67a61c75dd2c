"""Whole networks with and without the index of their feature maps, on real inputs, beside other engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sparseflow.core.plan import Measurement
from sparseflow.engine.build import Build
from sparseflow.engine.calibrate import profile_maps
from sparseflow.engine.compile import compile as compile_model
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.engine.measure.bench import BenchOptions, interleave, max_relative_error, outputs_of, pinned
from sparseflow.engine.measure.peers import accepted, prepared
from sparseflow.engine.measure.peers.base import Subject, torch_inputs
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import resolve
from sparseflow.errors import CompileError

Array = npt.NDArray[Any]
Run = Callable[[Sequence[Array]], Sequence[Array]]
INDEXED, PLAIN = "with map index", "without"
TOLERANCE = 1e-3
JUMPS = 0.1
"""The tolerance of networks with thresholds: a value within rounding of one is kept by one engine, zero in another."""


@dataclass(frozen=True)
class Subjects:
    """A network and the inputs that it is calibrated and timed on.

    Attributes
    ----------
    name, weights, data : str
        For the record.
    model : nn.Module or ExportedProgram
    calls : tuple of tuple of ndarray
        The inputs of each call, all of the same shapes; the timed calls take them in turn.
    labels : ndarray, optional
        Of the images of all calls, to see that the weights are what they are said to be.
    tolerance : float
        Largest relative difference of an output that is still timed.
    claimed : float, optional
        Density that the plan is made for instead of the calibrated ones: what a map denser than calibrated costs.
    """

    name: str
    weights: str
    data: str
    model: Any
    calls: tuple[tuple[Array, ...], ...]
    labels: Array | None = None
    claimed: float | None = None
    tolerance: float = TOLERANCE


def compare(subject: Subjects, options: BenchOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of one network: medians of interleaved calls, errors, densities and what was decided of each map.

    Raises
    ------
    CompileError
        If an output differs from the reference by more than the tolerance; nothing is timed then.
    """
    imported = import_model(subject.model, torch_inputs(subject.calls[0]))
    counted, calibration = None, cast(Any, subject.calls)
    if subject.claimed is not None:  # a profile alone: its engine is taken without being timed
        counted = profile_maps(imported, subject.calls, Build(resolve("native"), options.threads))
        calibration = counted.claimed(subject.claimed)
    with pinned(options.threads) as cores, tempfile.TemporaryDirectory(prefix="sparseflow-maps-") as folder:
        engines = {
            PLAIN: _compiled(imported, None, options, say),
            INDEXED: _compiled(imported, calibration, options, say),
        }
        profile = counted or engines[INDEXED].plan.maps
        if profile is None:
            raise CompileError(f"{subject.name}: compiled without calibration")
        runs: dict[str, Run] = {name: outputs_of(engine) for name, engine in engines.items()}
        runs |= _peers(subject, options, Path(folder), say)
        errors, accuracy = _checked(subject, runs)
        say("time")
        samples = interleave(
            [_in_turn(run, subject.calls) for run in runs.values()], options.rounds, cores, say
        )
    medians = {
        name: Measurement.of(taken, options.threads, machine_name()).median_s
        for name, taken in zip(runs, samples, strict=True)
    }
    peers = {name: time_s for name, time_s in medians.items() if name not in engines}
    best = min(peers, key=lambda name: peers[name], default=None)
    plan = engines[INDEXED].plan
    return {
        "name": subject.name,
        "weights": subject.weights,
        "data": subject.data,
        "calls": len(subject.calls),
        "threads": options.threads,
        "machine": machine_name(),
        "median_ms": {name: time_s * 1e3 for name, time_s in medians.items()},
        "max_relative_error": errors,
        "accuracy": accuracy,
        "map_density": profile.mean,
        "claimed_density": subject.claimed,
        "gain": medians[PLAIN] / medians[INDEXED],
        "best_peer": best,
        "gain_over_best_peer": peers[best] / medians[INDEXED] if best is not None else None,
        "notes": list(plan.notes),
        "layers": [
            {
                "name": layer.name,
                "map": list(counted.shape),
                "density": counted.mean,
                "kernel": layer.chosen.label,
                "indexed": bool(layer.map_format),
                "note": layer.map_note,
                "without": without.chosen.label,
                "time_ms": layer.chosen.time_s * 1e3,
                "without_ms": without.chosen.time_s * 1e3,
            }
            for layer, without, counted in zip(
                plan.layers, engines[PLAIN].plan.layers, profile.layers, strict=True
            )
        ],
    }


def _compiled(
    imported: Imported, calibration: Any, options: BenchOptions, say: Callable[[str], None]
) -> Engine:
    return compile_model(
        imported,
        threads=options.threads,
        measure=options.measure,
        calibration=calibration,
        progress=say,
    )


def _peers(
    subject: Subjects, options: BenchOptions, folder: Path, say: Callable[[str], None]
) -> dict[str, Run]:
    """Those that can run it."""
    given = Subject(
        subject.name,
        subject.model,
        subject.calls[0],
        weights=subject.weights,
        calibration=tuple(subject.calls),
    )

    def left_out(name: str, reason: str) -> None:
        say(f"{name} left out: {reason}")

    found = prepared(given, options.against, options.threads, folder, (say, left_out))
    return {name: peer for name, peer, _ in found}


def _checked(subject: Subjects, runs: dict[str, Run]) -> tuple[dict[str, float], float | None]:
    """The largest error of each engine over all calls, against the module itself, and the accuracy of ours."""
    import torch

    errors, right = dict.fromkeys(runs, 0.0), 0
    exported = isinstance(subject.model, torch.export.ExportedProgram)
    module = subject.model.module() if exported else subject.model
    for i, inputs in enumerate(subject.calls):
        with torch.no_grad():
            expected = module(*torch_inputs(inputs))
        reference = [t.numpy() for t in (expected if isinstance(expected, tuple) else (expected,))]
        for name, run in runs.items():
            outputs = [np.array(output) for output in run(inputs)]
            errors[name] = max(errors[name], max_relative_error(outputs, reference))
            if name == INDEXED and subject.labels is not None:
                batch = len(outputs[0])
                right += int((outputs[0].argmax(1) == subject.labels[i * batch : (i + 1) * batch]).sum())
    for name, error in errors.items():
        if not accepted(name, error, subject.tolerance):
            raise CompileError(
                f"{subject.name}: outputs of {name} differ from torch's by {error:.2g} relative, more than "
                f"{subject.tolerance:g}; nothing was timed"
            )
    count = len(subject.calls) * len(subject.calls[0][0])
    return errors, None if subject.labels is None else right / count


def _in_turn(run: Run, calls: Sequence[tuple[Array, ...]]) -> Callable[[], object]:
    """One call after another, over and over."""

    inputs = cycle(calls)
    return lambda: run(next(inputs))
