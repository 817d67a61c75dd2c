"""Ours and other engines timed in interleaved rounds of one process, after their outputs were compared."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sparseflow
from sparseflow.core.checks import flag, whole_number
from sparseflow.core.codec import encode
from sparseflow.core.plan import Measurement, Plan
from sparseflow.engine.measure.peers import PEERS, Array, Subject, accepted, float_peers, prepared, version
from sparseflow.engine.target.machine import machine_name
from sparseflow.errors import CompileError, InputError

if TYPE_CHECKING:
    from sparseflow.engine.runtime.engine import Engine

OURS = "sparseflow"
TURN_S = 0.15  # how long one engine runs before the next has its turn
Run = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class BenchOptions:
    """How to time.

    Attributes
    ----------
    threads : int
        Threads of every engine, and cores that the process is pinned to.
    against : tuple of str
        Names in `PEERS`; by default those that compute in float32.
    rounds : int
        Turns of each engine; engines alternate within a round.
    measure : bool
        Whether our kernels are chosen by measurement.
    exact : bool
        Whether kernels with a larger rounding error than direct sums are left out of ours.
    tolerance : float, optional
        Largest relative difference of outputs that is still timed; by default 0.001, in bf16 0.05, in int8 0.2.
        Quantised peers are not held to it (`accepted`).
    calibration : sequence of tuple of ndarray, optional
        Calls on which ours counts the zeros of feature maps, or in int8 their ranges (`sparseflow.compile`), and
        quantised peers their ranges. Ranges are drawn from the call that is timed if there are no others.
    precision : str
        In which ours multiplies (`sparseflow.compile`).

    Raises
    ------
    InputError
        If a number is out of bounds or of another type.
    RegistryError
        If there is no such peer.
    """

    threads: int = 1
    against: tuple[str, ...] = float_peers()
    rounds: int = 9
    measure: bool = True
    exact: bool = False
    tolerance: float | None = None
    calibration: Sequence[tuple[Array, ...]] | None = None
    precision: str = Plan.precision

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))  # that the process can be pinned to
        whole_number("bench: threads", self.threads, 1, cores, InputError)
        whole_number("bench: rounds", self.rounds, 1, None, InputError)
        for name in ("measure", "exact"):
            flag(f"bench: {name}", getattr(self, name), InputError)
        if not isinstance(self.limit, float | int) or not self.limit >= 0:
            raise InputError(f"bench: tolerance={self.tolerance!r}: allowed: numbers from 0 on")
        if isinstance(self.against, str):
            raise InputError(f"bench: against={self.against!r}: allowed: a tuple of names, as ('torch',)")
        for name in self.against:
            PEERS[name]  # an unknown name raises with the known ones

    @property
    def limit(self) -> float:
        """The tolerance, or that of the precision."""
        usual = {Plan.precision: 1e-3, "int8": 0.2, "auto": 0.2}.get(self.precision, 5e-2)
        return usual if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class EngineResult:
    """One engine's times and how far its outputs are from the reference's."""

    engine: str
    latency: Measurement
    max_relative_error: float
    prepare_s: float
    version: str

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in the JSON file, which people read too: times in milliseconds, so not `encode`."""
        latency, times = self.latency, ("median", "p10", "p90", "min")
        return {
            "engine": self.engine,
            "latency_ms": {name: getattr(latency, f"{name}_s") * 1e3 for name in times},
            "max_relative_error": self.max_relative_error,
            "samples": latency.repeats,
            "prepare_s": self.prepare_s,
            "version": self.version,
        }


@dataclass(frozen=True)
class BenchResult:
    """All engines on one subject; ratios are within this one run.

    Attributes
    ----------
    results : tuple of EngineResult
        Ours first.
    reference : str
        The engine that outputs were compared with: torch, timed or not, wherever it runs the model.
    skipped : tuple of (str, str)
        Peers that could not take part, with the reason.
    plan : Plan or None
        Ours.
    """

    model: str
    sparsify: str
    weights: str
    threads: int
    machine: str
    reference: str
    results: tuple[EngineResult, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    plan: Plan | None = None

    @property
    def best_peer(self) -> EngineResult | None:
        """The peer of the least median."""
        peers = [r for r in self.results if r.engine != OURS]
        return min(peers, key=lambda r: r.latency.median_s, default=None)

    @property
    def speedup_vs_best_peer(self) -> float | None:
        """The best peer's median over ours; None without peers."""
        best, ours = self.best_peer, self.results[0]
        return best.latency.median_s / ours.latency.median_s if best is not None else None

    def to_json(self) -> dict[str, Any]:
        """What ``bench --json`` writes: the record with its ratios and in the form of `EngineResult.to_json`."""
        best = self.best_peer
        return {
            "kind": "bench",
            "model": self.model,
            "sparsify": self.sparsify or None,
            "sparsify_method": "one-shot magnitude, not retrained" if self.sparsify else None,
            "weights": self.weights,
            "threads": self.threads,
            "machine": self.machine,
            "results": [result.to_json() for result in self.results],
            "best_peer": best.engine if best is not None else None,
            "speedup_vs_best_peer": self.speedup_vs_best_peer,
            "reference": self.reference,
            "skipped": [{"engine": name, "reason": reason} for name, reason in self.skipped],
            "versions": {result.engine: result.version for result in self.results},
            "plan": encode(self.plan),
        }


@dataclass
class _Contender:
    name: str
    run: Run
    prepare_s: float
    version: str
    outputs: list[Array] = field(default_factory=list)
    samples_s: list[float] = field(default_factory=list)


def bench(
    subject: Subject, options: BenchOptions, progress: Callable[[str], None] | None = None
) -> BenchResult:
    """Ours against the peers on one model.

    Raises
    ------
    CompileError
        If our outputs differ from the reference's by more than the tolerance, or a peer's package is missing.
    """
    say = progress or (lambda _text: None)
    with pinned(options.threads) as cores, tempfile.TemporaryDirectory(prefix="sparseflow-bench-") as folder:
        say(f"compile {subject.label}")
        ours, plan = _ours(subject, options, say)
        contenders = [ours]
        skipped: list[tuple[str, str]] = []
        tell = say, lambda name, reason: skipped.append((name, reason))
        given = replace(subject, calibration=tuple(options.calibration or subject.calibration))
        for name, peer, seconds in prepared(given, options.against, options.threads, Path(folder), tell):
            contenders.append(_Contender(name, peer, seconds, version(name)))
        reference = _check(contenders, subject, options, say)
        runs = [partial(contender.run, subject.inputs) for contender in contenders]
        for contender, samples in zip(contenders, interleave(runs, options.rounds, cores, say), strict=True):
            contender.samples_s = samples
        results = tuple(_result(c, reference, options.threads) for c in contenders)
    return BenchResult(
        subject.label, subject.sparsify, subject.weights, options.threads, machine_name(), reference.name,
        results, tuple(skipped), plan,
    )  # fmt: skip


def max_relative_error(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """max over outputs of ``max |a − b| / max |b|``; infinite if shapes differ or a value is not finite."""
    if len(outputs) != len(reference):
        return math.inf
    worst = 0.0
    for a, b in zip(outputs, reference, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all():
            return math.inf
        scale = float(np.abs(b).max()) if b.size else 0.0
        difference = float(np.abs(a.astype(np.float64) - b).max()) if b.size else 0.0
        worst = max(worst, difference / scale if scale else (math.inf if difference else 0.0))
    return worst


@contextmanager
def pinned(threads: int) -> Iterator[set[int]]:
    """This process on its first ``threads`` cores for the duration; gives their numbers."""
    before = os.sched_getaffinity(0)
    cores = set(sorted(before)[:threads])
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _ours(subject: Subject, options: BenchOptions, say: Callable[[str], None]) -> tuple[_Contender, Plan]:
    from sparseflow.engine.compile import compile as compile_model
    from sparseflow.engine.frontends.importer import import_model
    from sparseflow.engine.measure.peers.base import torch_inputs

    start = time.perf_counter()
    imported = subject.imported
    if imported is None:
        examples = torch_inputs(subject.inputs) if hasattr(subject.model, "forward") else None
        imported = import_model(subject.model, examples)
    calibration = options.calibration
    if calibration is None and options.precision in ("int8", "auto"):
        calibration = [tuple(subject.inputs)]
    engine = compile_model(
        imported,
        threads=options.threads,
        measure=options.measure,
        exact=options.exact,
        calibration=calibration,
        precision=options.precision,
        sparsify=subject.sparsify,
        progress=say,
    )

    return _Contender(
        OURS, outputs_of(engine), time.perf_counter() - start, sparseflow.__version__
    ), engine.plan


def outputs_of(engine: Engine) -> Run:
    """A call of the engine as peers have it: a list of outputs for a sequence of inputs."""

    def run(inputs: Sequence[Array]) -> list[Array]:
        outputs = engine(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run


def _check(
    contenders: list[_Contender], subject: Subject, options: BenchOptions, say: Callable[[str], None]
) -> _Contender:
    """Compares all outputs with the reference's, and returns that."""
    say("compare outputs")
    for contender in contenders:
        contender.outputs = [np.array(output) for output in contender.run(subject.inputs)]
    reference = _reference(contenders, subject, options.threads)
    for contender in contenders:
        error = max_relative_error(contender.outputs, reference.outputs)
        if not accepted(contender.name, error, options.limit):
            raise CompileError(
                f"bench {subject.label}: outputs of {contender.name} differ from {reference.name}'s by "
                f"{error:.2g} relative, more than {options.limit:g}; nothing was timed"
            )
    return reference


def _reference(contenders: list[_Contender], subject: Subject, threads: int) -> _Contender:
    """Torch in float32, called once if it is not timed; of an ONNX model the first float peer, else ours."""
    by_name = {contender.name: contender for contender in contenders}
    if "torch" in by_name:
        return by_name["torch"]
    if subject.is_onnx:
        return next((by_name[name] for name in by_name if name in float_peers()), contenders[0])
    torch = PEERS["torch"].make(subject, threads, Path())
    outputs = [np.array(output) for output in torch(subject.inputs)]
    return _Contender("torch", torch, 0.0, version("torch"), outputs)


def interleave(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    cores: set[int],
    progress: Callable[[str], None] | None = None,
) -> list[list[float]]:
    """Seconds of each call of each run; in every round the runs take turns of about `TURN_S`.

    Parameters
    ----------
    runs : sequence of callable
        Each makes one call of one engine.
    rounds : int
    cores : set of int
        What the calling thread is pinned to; see `pinned`.
    """
    say = progress or (lambda _text: None)
    fastest = [min(_seconds(run) for _ in range(3)) for run in runs]
    counts = [max(2, min(200, math.ceil(TURN_S / max(once, 1e-6)))) for once in fastest]
    samples: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for run, count, taken in zip(runs, counts, samples, strict=True):
            os.sched_setaffinity(0, cores)  # an engine may have pinned the calling thread elsewhere
            _seconds(run)  # the first call of a turn finds cold caches and sleeping threads
            taken += [_seconds(run) for _ in range(count)]
    return samples


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _result(contender: _Contender, reference: _Contender, threads: int) -> EngineResult:
    latency = Measurement.of(contender.samples_s, threads, machine_name())
    error = max_relative_error(contender.outputs, reference.outputs)
    return EngineResult(contender.name, latency, error, contender.prepare_s, contender.version)
