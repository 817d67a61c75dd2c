"""Dense convolution and linear layer on the same skeleton: no index, R filters share each input load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import BFLOAT16, FLOAT32, UINT8
from sparseflow.kernels.ir import emit
from sparseflow.kernels.lane.convolution import ConvBody, LaneConvolution, Tile
from sparseflow.kernels.lane.cost import tile_choices, tile_cycles
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any


@register
class Direct(LaneConvolution):
    """Direct dense convolution on the aligned-tap layout."""

    name = "direct"
    narrow = True
    maps = (FLOAT32, BFLOAT16, UINT8)
    format = "dense"

    def candidates(self, workload: Workload) -> list[Candidate]:
        """Blocks of 8, 4, 2 or 1 filters (the two largest that divide a group) with tiles that fill the registers."""
        per = workload.result.per_slot
        heights = [r for r in (8, 6, 5, 4, 3, 2, 1) if workload.fits(r) and r % per == 0][:3]
        if not workload.joins and per > 1:
            heights = [per]  # the filters whose channels share a slot
        orders = (0, 1) if workload.weight_bytes > workload.target.caches.l2 // 2 else (0,)
        found = [
            c
            for r in heights
            for rows, v in tile_choices(workload, r)
            for chunk in _chunks(workload)
            for order in orders
            for c in self.in_types(
                workload, Candidate("direct", {"R": r, "rows": rows, "V": v, "chunk": chunk, "order": order})
            )
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        return tile_cycles(workload, candidate, workload.taps)

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(chunks, blocks, chunk channels, kh, kw, R), the last chunk shorter, flattened."""
        p = candidate.parameters
        r, per_group = p["R"], workload.depth
        chunk = p["chunk"] or per_group
        blocks = workload.blocks(r)
        dense = weight.joined(workload).dense[: blocks * r]
        blocked = dense.reshape(-1, r, *dense.shape[1:]).transpose(0, 2, 3, 4, 1)
        parts = [blocked[:, c : c + chunk].reshape(-1) for c in range(0, per_group, chunk)]
        work = np.ones(blocks)
        data = self.written(workload, candidate, np.concatenate(parts))
        return {"data": data, **self.partition(workload, candidate, work)}

    def arguments(self, kernel: ConvBody) -> list[Any]:
        """See `LaneConvolution.arguments`."""
        rows = kernel.blocks * kernel.R
        size = (rows * kernel.workload.taps,)
        return [emit.arg("data", size, self.storage(kernel.workload, kernel.candidate))]

    def taps(self, kernel: ConvBody, tile: Tile, add: Callable[[Expr, Callable[[int], Expr]], None]) -> None:
        """See `LaneConvolution.taps`."""
        (data,) = kernel.packed
        w = kernel.workload
        kh, kw = w.kernel_size
        per_group, taps = w.depth, kh * kw
        group = tile.block * kernel.R // (w.filters // w.groups) if w.groups > 1 else 0
        if not w.joins and w.maps.per_slot > 1:  # a block's filters share a slot
            group = group // w.maps.per_slot
        first = T.bind(T.int32(0) + tile.chunk * kernel.chunk + group * per_group)
        length = kernel.chunk
        if kernel.chunks > 1 and per_group % kernel.chunk:
            length = T.bind(T.min(T.int32(kernel.chunk), per_group - tile.chunk * kernel.chunk))
        base = T.bind(
            (tile.chunk * kernel.chunk * kernel.blocks + tile.block * length) * (taps * kernel.R) + T.int32(0)
        )

        def row(c: Expr, ky: Expr) -> None:
            for kx in range(kw):
                at = base + ((c * kh + ky) * kw + kx) * kernel.R
                add(
                    kernel.tap_offset(first + c, ky, kx),
                    lambda r, at=at: self.read(kernel, data[at + r]),  # type: ignore[misc]
                )

        if per_group == 1:  # depthwise: straight-line code, so that overlapping loads are shared
            for ky in range(kh):
                row(0, ky)
        else:
            with emit.loop(length) as c, emit.loop(kh) as ky:
                row(c, ky)


def _chunks(workload: Workload) -> list[int]:
    """Chunk lengths in channels; 0 is all at once."""
    per_group = workload.channels // workload.groups
    if workload.maps.per_slot > 1:  # no partial sums in a narrow map
        return [0]
    return [0] + [c for c in (64, 128) if c * 2 <= per_group]
