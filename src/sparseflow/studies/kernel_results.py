"""The files of the kernel benchmarks, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from sparseflow.core.kernel_speed import KernelRun, Limits, SpeedPoint
from sparseflow.core.map_speed import MapRun


@dataclass(frozen=True)
class PublishedPoint:
    """A speed-up over dense that was published for a layer, beside ours.

    Attributes
    ----------
    source : str
        The pull request.
    published : float or None
        None where our notes hold no figure.
    network : str
        Where the layer is one of many that were published together; empty for a layer alone.
    layers : int
        How many times the layer stands in that network.
    """

    source: str
    sparsity: float
    published: float | None
    ours: SpeedPoint
    network: str = ""
    layers: int = 1


@dataclass(frozen=True)
class KernelResults:
    """The file of ``benchmarks/kernels.py``."""

    machine: str
    limits: Limits
    cases: dict[str, KernelRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["kernels"] = "kernels"


@dataclass(frozen=True)
class BreakEvenResults:
    """The file of ``benchmarks/break_even.py``."""

    machine: str
    cases: dict[str, SpeedPoint] = field(default_factory=dict)
    command: str = ""
    kind: Literal["break-even"] = "break-even"


@dataclass(frozen=True)
class PublishedResults:
    """The file of ``benchmarks/published.py``."""

    machine: str
    cases: dict[str, PublishedPoint] = field(default_factory=dict)
    command: str = ""
    kind: Literal["published"] = "published"


@dataclass(frozen=True)
class FeatureMapResults:
    """The file of ``benchmarks/feature_maps.py``."""

    machine: str
    cases: dict[str, MapRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["feature-maps"] = "feature-maps"


def break_even_sparsity(points: Iterable[SpeedPoint]) -> float | None:
    """The least sparsity from which on the sparse kernel is never slower, between measured points by a straight line.

    None if the sparsest point is slower; the sparsity of the densest point if none is.
    """
    ordered = sorted(points, key=lambda p: p.sparsity, reverse=True)
    if not ordered or ordered[0].speedup < 1.0:
        return None
    for above, below in pairwise(ordered):
        if below.speedup < 1.0:
            share = (1.0 - below.speedup) / (above.speedup - below.speedup)
            return below.sparsity + share * (above.sparsity - below.sparsity)
    return ordered[-1].sparsity


def network_speedup(points: Iterable[PublishedPoint]) -> float:
    """Dense time / sparse time, each summed over the layers of a network."""
    taken = list(points)
    return sum(p.ours.dense_s * p.layers for p in taken) / sum(p.ours.sparse_s * p.layers for p in taken)
