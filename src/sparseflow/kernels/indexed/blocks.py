"""Both sides sparse: a bitmap of the weights meets the bitmap of the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from sparseflow.kernels.indexed import emit as pixel_emit
from sparseflow.kernels.indexed.convolution import PixelBody, PixelConvolution, Read, Spot, weight_rows
from sparseflow.kernels.ir import emit
from sparseflow.kernels.layouts.indexed import WORD
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import SHARED, Array, Layouts, Workload

Expr = Any
DENSEST_WEIGHTS = 0.7


@register
class PixelBlocks(PixelConvolution):
    """Sparse weights in blocks of filters, sparse map: only what neither side's zeros remove is multiplied.

    Weights are kept by blocks of ``VB`` vectors of filters that share a tap. A word of bits says which of 64 channels
    a block keeps at a kernel position; the kept blocks lie in order without gaps, so that a channel's place is the
    number of kept channels before it.
    """

    name = "pixel-blocks"
    format = "bitmap"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        narrowest = self.kept(workload, 1)
        if narrowest > DENSEST_WEIGHTS:
            return (
                f"blocks of {workload.vectors.lanes} filters by 1 have density {narrowest:.2f}, above "
                f"{DENSEST_WEIGHTS}: prune in blocks across filters to skip zeros on both sides"
            )
        return super().rejects(workload)

    def kept(self, workload: Workload, vectors: int) -> float:
        """See `PixelConvolution.kept`."""
        return workload.density(min(SHARED[-1], vectors * workload.vectors.lanes))

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """Kept blocks (block, word, kernel position, channel), their first vectors, and the bits of the kept."""
        lanes = workload.vectors.lanes
        words = -(-workload.channels // WORD)
        data, kept, sizes = [], [], []
        for rows in weight_rows(workload, candidate, weight.dense):
            rows = np.pad(rows, ((0, 0), (0, words * WORD - workload.channels), (0, 0)))
            rows = rows.reshape(len(rows), words, WORD, -1).transpose(1, 0, 2, 3)
            keep = np.any(rows != 0, axis=-1)
            data.append(rows[keep].reshape(-1))
            kept.append(keep.reshape(-1, WORD))
            sizes.append(kept[-1].sum(axis=1) * (rows.shape[-1] // lanes))
        starts = np.concatenate([[0], np.cumsum(np.concatenate(sizes))[:-1]])
        bits = np.packbits(np.concatenate(kept), axis=1, bitorder="little").view("<u8").reshape(-1)
        return {
            "data": np.concatenate([*data, np.zeros(lanes, np.float32)]),
            "starts": starts.astype(np.int32),
            "bits": bits.astype(np.uint64),
        }

    def arguments(self, kernel: PixelBody) -> list[Any]:
        """See `PixelConvolution.arguments`."""
        blocks = -(-(kernel.output.stored // kernel.lanes) // kernel.VB)
        size = (blocks * kernel.input.words * kernel.positions,)
        return [
            emit.arg("data", (None,)),
            emit.arg("starts", size, "int32"),
            emit.arg("bits", size, "uint64"),
        ]

    def meet(self, kernel: PixelBody, spot: Spot, tap: Expr, word: Expr) -> Expr:
        """See `PixelConvolution.meet`."""
        return word & kernel.packed[2][self._place(kernel, spot, tap)]

    def walk(self, kernel: PixelBody, spot: Spot, read: Read, add: Callable[[Expr, Expr], None]) -> None:
        """See `PixelConvolution.walk`."""
        _, starts, bits = kernel.packed
        place = T.bind(self._place(kernel, spot, read.tap))
        kept = T.bind(bits[place])
        base = T.bind((starts[place] - spot.vectors) * kernel.lanes)
        with pixel_emit.set_bits(read.word) as (channel, left):
            upto = pixel_emit.popcount(kept & (left ^ (left - T.uint64(1))))
            add(channel, T.bind(base + upto * (spot.vectors * kernel.lanes)))

    @staticmethod
    def _place(kernel: PixelBody, spot: Spot, tap: Expr) -> Expr:
        return (spot.block * kernel.input.words + spot.word) * kernel.positions + tap
