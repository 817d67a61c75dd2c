"""What the compiler decided and measured: plain, frozen, JSON-ready records, shared by engine, report and CLI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparseflow.core.element_type import FLOAT32
from sparseflow.core.map_profile import MapProfile


@dataclass(frozen=True)
class Measurement:
    """Time of one thing on one machine; its outputs were checked before it was timed.

    Attributes
    ----------
    median_s, p10_s, p90_s, min_s : float
        Seconds per call.
    repeats : int
        Number of timed samples.
    threads : int
        Threads used.
    machine : str
        CPU model and vector extension, as `sparseflow.engine.target.machine` names it.
    """

    median_s: float
    p10_s: float
    p90_s: float
    min_s: float
    repeats: int
    threads: int
    machine: str

    @classmethod
    def of(cls, samples_s: list[float], threads: int, machine: str) -> Measurement:
        """Order statistics of ``samples_s`` (seconds per call; at least one)."""
        median, p10, p90 = np.quantile(samples_s, (0.5, 0.1, 0.9)).tolist()
        return cls(median, p10, p90, min(samples_s), len(samples_s), threads, machine)


@dataclass(frozen=True)
class CandidateTime:
    """One kernel candidate of a layer: its name, parameters and time (predicted or measured)."""

    template: str
    parameters: dict[str, int]
    time_s: float
    measured: bool

    @property
    def label(self) -> str:
        """The template with its parameters, as ``taps(R=4,rows=2,V=2)``."""
        inner = ",".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.template}({inner})" if inner else self.template


@dataclass(frozen=True)
class Rejection:
    """A kernel template that does not apply to a layer, with the reason in words."""

    template: str
    reason: str


@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer with weights; layers left dense are listed too.

    Attributes
    ----------
    name : str
        The weight's name in the model (``layer1.0.conv1``).
    op : str
        ``conv2d`` or ``linear``.
    weight_shape : tuple of int
        OIHW for a convolution, (out, in) for a linear layer.
    output_shape : tuple of int
        NCHW, or (rows, features).
    structure : str
        The structure found in the zeros, as `repr` of a `Structure`; ``Dense`` when there is none to use.
    density : float
        Kept fraction of the weights.
    format : str
        Name of the index format that the chosen kernel reads; ``dense`` if it reads none.
    value_bytes, index_bytes : int
        Size of the stored values and of all index arrays, padding and pointers included.
    tiles_total, tiles_computed : int
        Blocks of weights a dense kernel of the same blocking multiplies, and those the chosen one does.
    macs_dense, macs_computed : int
        Multiply-accumulates for one call.
    chosen : CandidateTime
    candidates : tuple of CandidateTime
        All of them, fastest first, the chosen included.
    rejected : tuple of Rejection
    map_density : float or None
        Calibrated density of its input; None without calibration.
    map_format : str
        The index format that its input carries; empty if none.
    map_index_bytes : int
        Size of that index.
    map_switch : float or None
        Density of the input above which the plain kernel runs instead; None where the chosen one is always faster.
    map_note : str
        Why its input carries no index.
    element : str
        Name of the `ElementType` in which its products are made.
    """

    name: str
    op: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    structure: str
    density: float
    format: str
    value_bytes: int
    index_bytes: int
    tiles_total: int
    tiles_computed: int
    macs_dense: int
    macs_computed: int
    chosen: CandidateTime
    candidates: tuple[CandidateTime, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    note: str = ""
    map_density: float | None = None
    map_format: str = ""
    map_index_bytes: int = 0
    map_switch: float | None = None
    map_note: str = ""
    element: str = FLOAT32.name


@dataclass(frozen=True)
class Cut:
    """What propagation took from one layer; pairs are (before, after).

    Attributes
    ----------
    name : str
        The weight's name in the model.
    filters : (int, int)
        Filters that are computed.
    channels : (int, int)
        Input channels that are read.
    macs : (int, int)
        Multiply-accumulates of one call, zeros among the weights included.
    weight_bytes : (int, int)
        Size of the dense float32 weight.
    dropped : int
        Weights other than zero that could not matter: they met a constant channel, or nobody read their result.
    held : int
        Channels of the result; more than the filters where the union of a residual add has channels that this layer
        does not make.
    added : int
        Channels of the result to which a residual is added; fewer than are held where the residual lacks some.
    """

    name: str
    filters: tuple[int, int]
    channels: tuple[int, int]
    macs: tuple[int, int]
    weight_bytes: tuple[int, int]
    dropped: int
    held: int
    added: int

    @property
    def union(self) -> str:
        """How the sum's channels come together, ``128 + 112 passed, 236 added``; empty where both sides hold all."""
        if not self.added or self.added == self.held == self.filters[1]:
            return ""
        return f"{self.filters[1]} + {self.held - self.filters[1]} passed, {self.added} added"


def cut_summary(cuts: Sequence[Cut]) -> str:
    """All cuts in a sentence."""

    def total(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
        before, after = zip(*pairs, strict=True)
        return sum(before), sum(after)

    filters, macs = total(c.filters for c in cuts), total(c.macs for c in cuts)
    nbytes = total(c.weight_bytes for c in cuts)
    return (
        f"propagation cut {len(cuts)} layers from {filters[0]:,} to {filters[1]:,} filters, "
        f"{macs[0] / 1e6:,.1f} to {macs[1] / 1e6:,.1f} million multiply-accumulates, "
        f"{nbytes[0] / 1e6:,.1f} to {nbytes[1] / 1e6:,.1f} MB of dense weights"
    )


@dataclass(frozen=True)
class RestTime:
    """An operator between the layers: its kernel, how often a call runs it, and the measured seconds of one run."""

    kernel: str
    calls: int
    time_s: float


@dataclass(frozen=True)
class Plan:
    """Every layer with weights and what runs it.

    Attributes
    ----------
    rest : tuple of RestTime
        The operators between the layers (changes of layout, pools, attention, …); empty in a plan
        that was not measured.
    exact : bool
        Whether kernels with a larger rounding error than adding up the products were left out.
    cuts : tuple of Cut
        What propagation took from which layer before that.
    maps : MapProfile or None
        Densities of the layers' inputs on the calibration data, if there was any.
    weights : str
        Name of the `ElementType` in which weights are stored.
    precision : str
        ``fp32``, or ``bf16`` where layers may make their products in bfloat16.
    """

    layers: tuple[LayerPlan, ...]
    target: str
    threads: int
    measured: bool
    sparsify: str = ""
    notes: tuple[str, ...] = field(default=())
    exact: bool = False
    cuts: tuple[Cut, ...] = ()
    rest: tuple[RestTime, ...] = ()
    maps: MapProfile | None = None
    weights: str = FLOAT32.name
    precision: str = "fp32"

    @property
    def layers_s(self) -> float:
        """Seconds of all layers in one call, each kernel's time taken alone."""
        return sum(layer.chosen.time_s for layer in self.layers)

    @property
    def rest_s(self) -> float:
        """Seconds of all operators between the layers in one call."""
        return sum(r.calls * r.time_s for r in self.rest)


@dataclass(frozen=True)
class OperatorTime:
    """Time spent in one operator of an engine in one call."""

    name: str
    kind: str
    time_s: float
    share: float
