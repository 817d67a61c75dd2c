"""Which maps carry an index, exactly: binary labels with costs on both ends of an edge are a minimum cut.

References
----------
V. Kolmogorov, R. Zabih, "What Energy Functions Can Be Minimized via Graph Cuts?", PAMI 2004, theorem 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

_UNITS = 1e12  # costs become whole picoseconds: a cut of integers is exact
_INDEXED, _PLAIN = "indexed", "plain"


@dataclass(frozen=True)
class Step:
    """An operator that may work on indexed maps.

    Attributes
    ----------
    reads : tuple
        The maps that it reads.
    plain_s, indexed_s : float
        Its time on plain and on indexed maps; ``indexed_s`` is infinite if it cannot.
    """

    reads: tuple[Hashable, ...]
    plain_s: float
    indexed_s: float = math.inf


@dataclass(frozen=True)
class Edge:
    """What it costs to have a map in its other form: to make its index, or to make a plain tensor of it."""

    index_s: float
    plain_s: float


def choose_indexed(
    steps: Mapping[Hashable, Step],
    edges: Mapping[Hashable, Edge],
    plain_reads: Sequence[Hashable] = (),
) -> frozenset[Hashable]:
    """The steps that work on indexed maps, so that all times and conversions together are least.

    A map in its other form is made once, for all who read it so.

    Parameters
    ----------
    steps : mapping
        Operator, named by the map that it writes → `Step`; a map that no step writes is plain.
    edges : mapping
        Map → `Edge`, for all that are read.
    plain_reads : sequence
        Maps that operators outside of ``steps`` read.
    """
    graph: Any = nx.DiGraph()
    graph.add_nodes_from((_INDEXED, _PLAIN))

    def pay(first: Hashable, second: Hashable, cost_s: float) -> None:
        """``cost_s`` when ``first`` is on the side of the indexed and ``second`` is not."""
        if math.isinf(cost_s):
            graph.add_edge(first, second)  # no capacity: infinite
        elif graph.has_edge(first, second):
            graph[first][second]["capacity"] += round(cost_s * _UNITS)
        else:
            graph.add_edge(first, second, capacity=round(cost_s * _UNITS))

    for name, step in steps.items():
        pay(_INDEXED, ("step", name), step.plain_s)
        pay(("step", name), _PLAIN, step.indexed_s)
        for read in step.reads:
            pay(("step", name), ("index of", read), math.inf)
            pay(("plain", read), ("step", name), math.inf)
    for read in plain_reads:
        if read in steps:
            pay(("plain", read), _PLAIN, math.inf)
    for name, edge in edges.items():
        writer = ("step", name) if name in steps else _PLAIN
        pay(("index of", name), writer, edge.index_s)
        if name in steps:
            pay(writer, ("plain", name), edge.plain_s)
    _, (indexed, _) = nx.minimum_cut(graph, _INDEXED, _PLAIN)
    return frozenset(name for name in steps if ("step", name) in indexed)


def cost_of(
    indexed: frozenset[Hashable],
    steps: Mapping[Hashable, Step],
    edges: Mapping[Hashable, Edge],
    plain_reads: Sequence[Hashable] = (),
) -> float:
    """Seconds of all steps and conversions with that choice."""
    total = sum(step.indexed_s if name in indexed else step.plain_s for name, step in steps.items())
    for name, edge in edges.items():
        readers = [other in indexed for other, step in steps.items() if name in step.reads]
        if name not in indexed and any(readers):
            total += edge.index_s
        if name in indexed and (name in plain_reads or not all(readers)):
            total += edge.plain_s
    return total
