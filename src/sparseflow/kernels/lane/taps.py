"""Tap lists: one kernel for every structure of a weight. R filters share a list of address offsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import BFLOAT16, FLOAT32, UINT8
from sparseflow.core.formats import TapList
from sparseflow.kernels.ir import emit
from sparseflow.kernels.lane.convolution import ConvBody, LaneConvolution, Tile
from sparseflow.kernels.lane.cost import large_map, tile_choices, tile_cycles
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import DENSEST, DENSEST_SHARED, Array, Layouts, Workload

Expr = Any


@register
class Taps(LaneConvolution):
    """Sparse convolution and linear layer: the zeros of blocks of R x 1 weights are neither stored nor multiplied.

    References
    ----------
    The offset list is SkimCaffe's sparse-direct idea (Park et al., ICLR 2017, section 2.2) over the aligned-tap layout.
    """

    name = "taps"
    narrow = True
    maps = (FLOAT32, BFLOAT16, UINT8)
    format = "tap-list"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        density = workload.density(workload.result.per_slot)
        if density > DENSEST and dict(workload.covers).get(4, 1.0) > DENSEST_SHARED:
            return f"density {density:.2f} is above {DENSEST}: indices cost more than the zeros save"
        if workload.maps.per_slot > 1 and not workload.joins:
            return "a depthwise filter reads one channel of a slot"
        return super().rejects(workload)

    def candidates(self, workload: Workload) -> list[Candidate]:
        """Block heights whose cover adds few zeros, each with the tiles that fill the registers."""
        least = max(workload.result.per_slot, 1)  # filters whose results share a slot are computed together
        useful = workload.density(least)
        found = []
        for r in (1, 2, 4, 8):
            if (
                r % least
                or not workload.fits(r)
                or workload.density(r) > useful * (1.0 + 0.6 * math.log2(r / least))
            ):
                continue
            found += [
                c
                for rows, v in tile_choices(workload, r)
                for chunk in _chunks(workload, r)
                for order in ((0, 2) if chunk and large_map(workload) else (0,))
                for c in self.in_types(
                    workload,
                    Candidate("taps", {"R": r, "rows": rows, "V": v, "chunk": chunk, "order": order}),
                )
            ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        taps = workload.density(candidate.parameters["R"]) * workload.taps
        return tile_cycles(workload, candidate, taps)

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """The tap list with its column ids replaced by element offsets into the input layout."""
        p = candidate.parameters
        form = TapList(rows=p["R"], chunk=p["chunk"] or None)
        index = weight.joined(workload).index(form, workload.blocks(p["R"]) * p["R"])
        return self.bind(workload, candidate, index.arrays, layouts)

    def bind(
        self, workload: Workload, candidate: Candidate, arrays: Mapping[str, Array], layouts: Layouts
    ) -> dict[str, Array]:
        """A tap list's arrays bound to a layout: offsets for column ids, boundaries for threads."""
        layout = layouts.in_lanes(self.name)[0]
        indptr, columns, data = arrays["indptr"], arrays["indices"], arrays["data"]
        kh, kw = workload.kernel_size
        channel, position = np.divmod(columns.astype(np.int64), kh * kw)
        ky, kx = np.divmod(position, kw)
        vector = channel * layout.plane + ky * workload.dilation[0] * layout.cols + kx * workload.dilation[1]
        blocks = workload.blocks(candidate.parameters["R"])
        counts = np.diff(indptr).reshape(-1, blocks)
        chunk = candidate.parameters["chunk"]
        if chunk:
            vector = vector - np.repeat(np.arange(len(counts)) * (chunk * layout.plane), counts.sum(axis=1))
        if workload.groups > 1:
            group = np.arange(blocks) * candidate.parameters["R"] // (workload.filters // workload.groups)
            base = np.tile(group * workload.depth * layout.plane, len(counts))
            vector = vector + np.repeat(base, counts.reshape(-1))
        return {
            "indptr": indptr.astype(np.int32),
            "offsets": vector.astype(offset_type(workload, candidate, layout)),
            "data": self.written(workload, candidate, data.reshape(-1)),
            **self.partition(workload, candidate, counts.sum(axis=0) + 2.0),
        }

    def arguments(self, kernel: ConvBody) -> list[Any]:
        """See `LaneConvolution.arguments`."""
        indptr = emit.arg("indptr", (None,), "int32")
        offsets = emit.arg("offsets", (None,), offset_type(kernel.workload, kernel.candidate, kernel.input))
        return [
            indptr,
            offsets,
            emit.arg("data", (None,), self.storage(kernel.workload, kernel.candidate)),
        ]

    def taps(self, kernel: ConvBody, tile: Tile, add: Callable[[Expr, Callable[[int], Expr]], None]) -> None:
        """See `LaneConvolution.taps`."""
        indptr, offsets, data = kernel.packed
        block = T.bind(tile.chunk * kernel.blocks + tile.block)
        first = T.bind(indptr[block])
        chunk = T.bind(T.int32(0) + tile.chunk * (kernel.chunk * kernel.input.plane * kernel.lanes))
        with emit.loop(indptr[block + 1] - first) as j:
            offset = tirx.Cast("int32", offsets[first + j]) * kernel.lanes + chunk
            add(offset, lambda r: self.read(kernel, data[(first + j) * kernel.R + r]))


def offset_type(workload: Workload, candidate: Candidate, layout: LaneLayout) -> str:
    """Offsets count vectors from their chunk's first channel: 16 bits where the chunk's planes are that few."""
    channels = candidate.parameters["chunk"] or workload.channels
    return "uint16" if channels * layout.plane <= 1 << 16 else "int32"


def _chunks(workload: Workload, r: int) -> list[int]:
    """Chunk lengths in channels; 0 is all channels at once. Wide blocks are bound by arithmetic and need none."""
    channels = workload.channels // workload.groups
    if r >= 8 or workload.groups > 1 or workload.maps.per_slot > 1:  # no partial sums in a narrow map
        return [0]
    sizes = (16, 32) if workload.kernel_size != (1, 1) else (64, 128)
    return [c for c in sizes if c < channels] + [0]
