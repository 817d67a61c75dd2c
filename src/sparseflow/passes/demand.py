"""Which channels each tensor holds after the cut: what is read, and what its neighbours force."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseflow.kernels.workload import Array, covers_of
from sparseflow.ops.expressions import inputs_of
from sparseflow.passes.channels import Channels, Layer, gathered

Expr = Any
SHARED_COST = {1: 2.4, 2: 1.4, 4: 1.05, 8: 1.0}
"""Time of one multiply-add in a block of R filters that share their taps, the widest block's being 1."""
SHARING = 8  # filters of the widest block whose loads are shared
SAMPLED = 2048  # columns from which the sharing of a weight is judged


@dataclass
class Demand:
    """Which channels each tensor holds after the cut, in which order.

    A tensor holds what is read, and what its neighbours force: operators on single channels have the same on both
    sides, groups of a convolution stay equally large, filters that share their taps stay together.

    Attributes
    ----------
    keep : dict
        int (kept,): the channels of each tensor, in the order in which it holds them.
    passed : dict
        Layers → how many of their last kept filters have no weights.
    """

    channels: Channels
    wanted: dict[Expr, Array] = field(default_factory=dict)
    block: dict[Expr, int] = field(default_factory=dict)
    fixed: set[Expr] = field(default_factory=set)
    keep: dict[Expr, Array] = field(default_factory=dict)
    passed: dict[Expr, int] = field(default_factory=dict)

    @classmethod
    def of(cls, channels: Channels) -> Demand:
        """The least that serves everyone."""
        self = cls(channels, {v: r.copy() for v, r in channels.read.items()})
        for var, layer in channels.layers.items():
            if layer.workload.groups == 1:
                self.block[var] = _block(layer, self.wanted[var])
        self.fixed = self._fixed()
        size = -1
        while True:
            for b in reversed(channels.graph.bindings):
                self._settle(b.var)
            last, size = size, sum(int(w.sum()) for w in self.wanted.values())
            if size == last:
                break
        self._order()
        return self

    def bare(self, var: Expr) -> bool:
        """Whether all that is left of a layer is its residual."""
        layer = self.channels.layers[var]
        return layer.free and bool(layer.open.any()) and not layer.live.any()

    def _settle(self, var: Expr) -> None:
        """Widens what one operator's tensors hold until it can be computed on them."""
        wanted, count = self.wanted, self.channels.count
        if var in self.channels.links:
            for v, at in self.channels.links[var].operands:
                wanted[v] |= gathered(wanted[var], at, count[v])
                wanted[var] |= (at >= 0) & wanted[v][at]
            return
        layer = self.channels.layers.get(var)
        if layer is None or not wanted[var].any():
            return
        tracked = self.channels.tracked(layer.x, layer)
        if layer.residual is not None and not layer.free:
            if self.channels.tracked(layer.residual, layer):
                both = wanted[var] | wanted[layer.residual]
                wanted[var], wanted[layer.residual] = both, both.copy()
            else:
                wanted[var][:] = True
        groups = layer.workload.groups
        if groups == 1:
            wanted[var] = self._shared(var)
            if tracked and not self.bare(var) and not wanted[layer.x].any():
                wanted[layer.x][0] = True
        elif tracked:
            ours, theirs = wanted[var].reshape(groups, -1), wanted[layer.x].reshape(groups, -1)
            alive = np.asarray(ours.any(axis=1) | theirs.any(axis=1))
            wanted[var], wanted[layer.x] = _even(ours, alive).reshape(-1), _even(theirs, alive).reshape(-1)
        else:
            wanted[var][:] = True

    def _fixed(self) -> set[Expr]:
        """Tensors whose channels stay in their order: another tensor or a grouped convolution goes by it."""
        fixed = set(inputs_of(self.channels.graph.output))
        for b in reversed(self.channels.graph.bindings):
            link, layer = self.channels.links.get(b.var), self.channels.layers.get(b.var)
            if layer is not None:
                if layer.workload.groups > 1:
                    fixed |= {layer.x, b.var}
                if layer.residual is not None and not layer.free:
                    fixed |= {layer.residual, b.var}
                operands = [layer.x] if layer.residual is None else [layer.x, layer.residual]
                fixed |= {v for v in operands if not self.channels.tracked(v, layer)}
            elif link is None:
                fixed |= set(inputs_of(b.value))
            elif b.var in fixed or (link.same and len(link.operands) > 1):
                fixed |= {b.var, *(v for v, _ in link.operands)}
        return fixed

    def _order(self) -> None:
        for b in self.channels.graph.bindings:
            if b.var in self.channels.layers:
                self.keep[b.var] = self._filters(b.var)
            elif b.var in self.channels.links:
                link = self.channels.links[b.var]
                taken = link.operands[:1] if link.same else link.operands
                parts = [np.flatnonzero(at == c) for v, at in taken for c in self.keep[v]]
                self.keep[b.var] = np.concatenate(parts) if parts else np.zeros(0, int)

    def _live(self, var: Expr) -> Array:
        """bool (filters,): the filters that are computed, where the order of the others is free."""
        layer = self.channels.layers[var]
        if var in self.fixed or layer.workload.op != "conv2d":
            return np.ones(self.channels.count[var], bool)
        return _blocks(layer.live, self.block[var])

    def _shared(self, var: Expr) -> Array:
        """What is wanted of a layer in whole blocks, those it computes up to a multiple of `SHARING`."""
        out = _blocks(self.wanted[var], self.block[var])
        missing = -(-int((out & self._live(var)).sum()) // SHARING) * SHARING - int(out.sum())
        if missing > 0:
            out[np.flatnonzero(~out)[-missing:]] = True
        return out

    def _filters(self, var: Expr) -> Array:
        """A layer's kept filters: those with weights first, where the order is free."""
        kept = np.flatnonzero(self.wanted[var])
        if self.channels.layers[var].workload.groups > 1:
            self.passed[var] = 0
            return kept
        live = self._live(var)[kept]
        self.passed[var] = len(kept) if self.bare(var) else int(np.count_nonzero(~live))
        return np.concatenate([kept[live], kept[~live]])


def _block(layer: Layer, wanted: Array) -> int:
    """How many filters from a multiple of that number on stay together: 1, or the height of the weight's own blocks.

    Unread filters between filters that share their taps cost less than the sharing that would be lost without them.
    """

    def cost(block: int) -> float:
        rows = sampled[_blocks(wanted, block)]
        shared = dict(covers_of(rows))
        return len(rows) * min(SHARED_COST[r] * shared[r] for r in SHARED_COST)

    flat = layer.weight.reshape(len(layer.weight), -1)
    sampled = flat[:, :: max(1, flat.shape[1] // SAMPLED)]
    return 1 if wanted.all() else min((1, 2, 4, 8), key=lambda block: (cost(block), block))


def _blocks(wanted: Array, block: int) -> Array:
    """``wanted`` with every block of which a part is wanted."""
    padded = np.pad(wanted, (0, -len(wanted) % block)).reshape(-1, block)
    return np.asarray(np.repeat(padded.any(axis=1), block)[: len(wanted)])


def _even(wanted: Array, alive: Array) -> Array:
    """(groups, n): the rows that are alive, all with as many members as the fullest, at least one."""
    out = wanted & alive[:, None]
    most = max(1, int(out.sum(axis=1).max(initial=0)))
    for row in np.flatnonzero(alive):
        out[row, np.flatnonzero(~out[row])[: most - int(out[row].sum())]] = True
    return out
