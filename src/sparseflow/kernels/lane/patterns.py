"""Pattern kernels: one straight-line body for each pattern of kept positions, run over the kernels that have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit
from sparseflow.kernels.lane.convolution import ConvBody, LaneConvolution, Tile
from sparseflow.kernels.lane.cost import large_map, pattern_cycles, tile_choices
from sparseflow.kernels.lane.taps import offset_type
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import DENSEST, Array, Layouts, Workload

Expr = Any


@register
class Patterns(LaneConvolution):
    """Sparse convolution whose kernels (filter, channel) have few different patterns of non-zeros.

    A kernel is one channel offset and the values of its pattern. The taps of one body are known when the code is made,
    so that neighbouring taps share their loads: four taps of a 3x3 read about half of what a tap list would.

    References
    ----------
    Pattern pruning and its grouped code are PatDNN's (Niu et al., ASPLOS 2020, sections 4 and 5); the index is the
    FKW format's (section 5.3) without its filter order.
    """

    name = "patterns"
    format = "fkw"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.kernel_size == (1, 1):
            return "a 1x1 kernel has no pattern"
        if workload.groups > 1:
            return f"{workload.groups} groups: a tap list is as good"
        if not workload.patterns:
            return "its kernels have more than 16 different patterns"
        if workload.density() > DENSEST:
            return (
                f"density {workload.density():.2f} is above {DENSEST}: indices cost more than the zeros save"
            )
        return super().rejects(workload)

    def candidates(self, workload: Workload) -> list[Candidate]:
        """The tiles that fill the registers, with and without chunks of channels."""
        order = 2 if large_map(workload) else 0
        found = [
            Candidate(
                self.name, {"R": 1, "rows": rows, "V": v, "chunk": chunk, "order": order if chunk else 0}
            )
            for rows, v in tile_choices(workload, 1)
            for chunk in (0, 32)
            if chunk < workload.channels
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        return pattern_cycles(workload, candidate)

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """Kernels sorted by (chunk, filter, pattern): pointers to runs of a pattern, channel offsets, values."""
        layout = layouts.in_lanes(self.name)[0]
        masks = [m for m, _ in workload.patterns]
        blocks = workload.blocks(1)
        flat = weight.dense[:blocks].reshape(blocks, workload.channels, -1)
        assigned = assign_patterns(flat != 0, masks)
        chunk = candidate.parameters["chunk"] or workload.channels
        filters, channels = np.nonzero(assigned >= 0)
        pattern = assigned[filters, channels]
        order = np.lexsort((channels, pattern, filters, channels // chunk))
        filters, channels, pattern = filters[order], channels[order], pattern[order]
        chunks = math.ceil(workload.channels / chunk)
        run = ((channels // chunk) * blocks + filters) * len(masks) + pattern
        counts = np.bincount(run, minlength=chunks * blocks * len(masks))
        entries = np.array([m.bit_count() for m in masks])
        positions = [np.flatnonzero([m >> i & 1 for i in range(flat.shape[2])]) for m in masks]
        sizes = counts * np.tile(entries, chunks * blocks)
        ends = np.cumsum(entries[pattern]) if len(pattern) else np.zeros(0, np.int64)
        data = np.zeros(max(int(sizes.sum()), 1), np.float32)
        for p, where in enumerate(positions):
            chosen = pattern == p
            at = (ends[chosen] - len(where))[:, None] + np.arange(len(where))
            data[at] = flat[filters[chosen][:, None], channels[chosen][:, None], where]
        offsets = (channels % chunk) * layout.plane
        work = sizes.reshape(chunks, blocks, -1).sum(axis=(0, 2)) + 2.0
        return {
            "indptr": _pointers(counts),
            "starts": _pointers(sizes.reshape(-1, len(masks)).sum(axis=1)),
            "offsets": np.concatenate([offsets, [0]]).astype(offset_type(workload, candidate, layout)),
            "data": data,
            **self.partition(workload, candidate, work),
        }

    def arguments(self, kernel: ConvBody) -> list[Any]:
        """See `LaneConvolution.arguments`."""
        runs = kernel.chunks * kernel.blocks
        return [
            emit.arg("indptr", (runs * len(kernel.workload.patterns) + 1,), "int32"),
            emit.arg("starts", (runs + 1,), "int32"),
            emit.arg("offsets", (None,), offset_type(kernel.workload, kernel.candidate, kernel.input)),
            emit.arg("data", (None,)),
        ]

    def taps(self, kernel: ConvBody, tile: Tile, add: Callable[[Expr, Callable[[int], Expr]], None]) -> None:
        """See `LaneConvolution.taps`."""
        indptr, starts, offsets, data = kernel.packed
        patterns = kernel.workload.patterns
        kw = kernel.workload.kernel_size[1]
        block = T.bind(tile.chunk * kernel.blocks + tile.block)
        chunk = T.bind(T.int32(0) + tile.chunk * (kernel.chunk * kernel.input.plane * kernel.lanes))
        begin, value = T.bind(indptr[block * len(patterns)]), T.bind(starts[block])
        for p, (mask, _) in enumerate(patterns):
            places = [i for i in range(mask.bit_length()) if mask >> i & 1]
            count = T.bind(indptr[block * len(patterns) + p + 1] - begin)
            with emit.loop(count) as j:
                channel = T.bind(tirx.Cast("int32", offsets[begin + j]) * kernel.lanes + chunk)
                first = T.bind(value + j * len(places))
                for e, place in enumerate(places):
                    ky, kx = divmod(place, kw)
                    offset = channel + kernel.tap_offset(0, ky, kx)
                    add(offset, lambda r, at=first + e: data[at])  # type: ignore[misc]
            begin, value = T.bind(begin + count), T.bind(value + count * len(places))


def assign_patterns(keep: Array, masks: list[int]) -> Array:
    """int (filters, channels): the pattern with the fewest entries that holds each kernel's non-zeros; -1 for none.

    Parameters
    ----------
    keep : ndarray of bool, shape (filters, channels, positions)
    masks : list of int
        Bit i stands for position i; together they hold every kernel.
    """
    bits = keep @ (1 << np.arange(keep.shape[2], dtype=np.int64))
    found = np.full(bits.shape, -1)
    for p in sorted(range(len(masks)), key=lambda p: -masks[p].bit_count()):
        found[(bits & ~np.int64(masks[p])) == 0] = p
    found[bits == 0] = -1
    return found


def _pointers(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
