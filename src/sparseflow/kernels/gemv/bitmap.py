"""Linear layers of a few rows on levels of 8 bits without their zeros: a bit for each weight tells which are left."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import UINT8
from sparseflow.kernels.gemv.few_rows import BYTES_PER_CYCLE, LINE
from sparseflow.kernels.gemv.levels import (
    AHEAD,
    LATENCY,
    Add,
    Block,
    FewRowsBody,
    FewRowsLevels,
    Read,
    blocks_of,
    sizes_of,
    vectors_of,
)
from sparseflow.kernels.ir import emit, llvm, slots
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import CODES, Array, Layouts, Workload

Expr = Any
EXPANDS = "avx512vbmi2"
MASK = 8  # bytes
EXPAND_CYCLES = 2.0  # of a mask
DECODE_CYCLES = 1.2  # of its codes
MISPREDICTED = 15.0  # cycles of a branch that goes the other way than expected
DENSEST_BITMAP = 0.85
"""Density from which on a bit for each weight takes about as many bytes as the zeros."""
MOST_SKIPPED = 0.5
"""Part of the masks with ones from which on none is tested for zeros."""


@register
class FewRowsBitmap(FewRowsLevels):
    """A bit for each weight, and those that are not zero behind each other.

    A mask of 64 bits stands for 64 weights; ``vpexpandb`` puts the next non-zeros where it has ones, and as many as
    there are the position moves on. Zeros may lie anywhere. With ``skip`` masks of zeros are tested for and passed.

    Attributes
    ----------
    bits, cycles : int, float
        Of a stored weight, and of reading 64.
    shift : int
        Binary logarithm of the bytes of four stored weights.
    """

    name = "few-rows-bitmap"
    format = "bitmap"
    code = llvm.quads(16, ("avx512vnni",)) + llvm.EXPAND
    bits, cycles, shift = 8, EXPAND_CYCLES, 2

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        reason = super().rejects(workload)
        if reason is None and EXPANDS not in workload.target.instruction_sets:
            return f"the target lacks {EXPANDS}, which expands bytes under a mask"
        return reason or self.unfit(workload)

    def unfit(self, workload: Workload) -> str | None:
        """Why the weights are not for it; None if they are."""
        density = workload.weight_density
        if density > DENSEST_BITMAP:
            return f"density {density:.2f} is above {DENSEST_BITMAP}: the masks cost more than the zeros save"
        return None

    def candidates(self, workload: Workload) -> list[Candidate]:
        """1, 2, 4 or 8 vectors of outputs at a time; with ``skip`` where masks without ones are many."""
        full = workload.density(workload.vectors.lanes)
        skips = (1, 0) if full < MOST_SKIPPED else (0,)
        found = [
            Candidate(self.name, {"B": b, "ahead": ahead, "skip": skip})
            for b in sizes_of(workload)
            for ahead in AHEAD
            for skip in skips
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        w, p = workload, candidate.parameters
        full = w.density(w.vectors.lanes)
        latency = max(1.0, LATENCY / (p["B"] * w.width))
        each = self.cycles + w.width * latency
        if p["skip"]:
            each = full * each + 1.0 + 2.0 * min(full, 1.0 - full) * MISPREDICTED
        stream = (MASK + w.weight_density * LINE * self.bits / 8) / BYTES_PER_CYCLE
        return w.depth * vectors_of(w) * max(stream, each) / w.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """Masks (blocks, quads, vectors of the block), first byte of each block, and the non-zeros, four an element.

        A line is read from any of them, so one of zeros stands at the end.
        """
        blocks = [b.reshape(-1).view(np.int8) for b in self.blocked(workload, candidate, weight)]
        weights = np.concatenate(blocks).reshape(-1, LINE)
        nbytes = self.nbytes(np.count_nonzero(weights, axis=1))
        ends = np.cumsum([b.size // LINE for b in blocks[:-1]], dtype=np.int64)
        return {
            "bits": np.packbits(weights != 0, bitorder="little").view(np.uint64),
            "indptr": np.concatenate([[0], np.cumsum(nbytes)[ends - 1]]).astype(np.int32),
            **self.values(weights),
        }

    def values(self, weights: Array) -> dict[str, Array]:
        """The packed non-zeros of (masks, 64) weights, and what is needed to read them."""
        return {"data": _with_a_line(weights[weights != 0].view(np.uint8), UINT8.slot)}

    def nbytes(self, count: Any) -> Any:
        """How many bytes the non-zeros of a mask take."""
        return count

    def arguments(self, body: FewRowsBody) -> Any:
        """See `FewRowsLevels.arguments`."""
        w = body.workload
        whole, rest = blocks_of(w, body.candidate)
        bits = emit.arg("bits", (vectors_of(w) * w.depth,), "uint64")
        indptr = emit.arg("indptr", (whole + (rest > 0),), "int32")
        return bits, indptr, self.operands(body)

    def operands(self, body: FewRowsBody) -> Any:
        """Declares what `values` packs as buffers, the data last."""
        return (emit.arg("data", (None,), UINT8.slot),)

    def expanded(self, operands: Any, at: Expr, mask: Expr) -> Expr:
        """The 64 weights of a mask, whose non-zeros start at byte ``at``."""
        return slots.expanded(operands[-1], at, mask)

    def reader(self, body: FewRowsBody, packed: Any, block: Block) -> Read:
        """See `FewRowsLevels.reader`."""
        bits, indptr, operands = packed
        data = operands[-1]
        ahead, skip = (body.candidate.parameters[n] for n in ("ahead", "skip"))
        place = emit.cell(tirx.Cast("int64", indptr[block.number]), "int64")

        def take(mask: Expr, add: Add) -> None:
            at = T.bind(place[0])
            ones = tirx.Cast("int64", T.call_llvm_pure_intrin("uint64", "llvm.ctpop.i64", mask))
            T.buffer_store(place, at + self.nbytes(ones), [0])
            if ahead:
                emit.prefetch(data, (at + tirx.const(ahead * LINE, "int64")) >> self.shift)
            add(T.bind(self.expanded(operands, at, mask)))

        def read(quad: Expr, v: int, add: Add) -> None:
            mask = T.bind(bits[block.first * body.workload.depth + quad * block.count + v])
            if not skip:
                take(mask, add)
                return
            with T.If(mask != tirx.const(0, "uint64")), T.Then():
                take(mask, add)

        return read


@register
class FewRowsCodes(FewRowsBitmap):
    """The same for weights that are at most 16 numbers: a code of 4 bits each, and a table of the numbers.

    Sums of two powers of two are such. Each mask's codes begin a byte.
    """

    name = "few-rows-codes"
    code = llvm.quads(16, ("avx512vnni",)) + llvm.DECODE
    bits, cycles, shift = 4, EXPAND_CYCLES + DECODE_CYCLES, 1

    def unfit(self, workload: Workload) -> str | None:
        """See `FewRowsBitmap.unfit`."""
        return None if workload.few_values else f"the weights are not at most {CODES} different numbers"

    def values(self, weights: Array) -> dict[str, Array]:
        """See `FewRowsBitmap.values`; the table four times, as each part of 128 bits looks up in its own."""
        keep = weights != 0
        table = np.unique(weights[keep])
        counts = np.count_nonzero(keep, axis=1)
        taken = 2 * self.nbytes(counts)
        unused = np.cumsum(taken - counts) - (taken - counts)  # half bytes in front of each mask's codes
        codes = np.zeros(int(taken.sum()), np.uint8)
        codes[np.arange(counts.sum()) + np.repeat(unused, counts)] = np.searchsorted(table, weights[keep])
        table = np.tile(np.pad(table, (0, CODES - len(table))), 4).view(np.int32)
        return {"table": table, "data": _with_a_line(codes[::2] | codes[1::2] << 4, "uint16")}

    def nbytes(self, count: Any) -> Any:
        """See `FewRowsBitmap.nbytes`."""
        return (count + 1) >> 1

    def operands(self, body: FewRowsBody) -> Any:
        """See `FewRowsBitmap.operands`."""
        return emit.arg("table", (body.lanes,), "int32"), emit.arg("data", (None,), "uint16")

    def expanded(self, operands: Any, at: Expr, mask: Expr) -> Expr:
        """See `FewRowsBitmap.expanded`."""
        table, data = operands
        return slots.decoded(data, at, mask, table[emit.ramp(0, 16)])


def _with_a_line(data: Array, dtype: str) -> Array:
    """Bytes as an array of another type, filled up, with a line of zeros behind."""
    return np.pad(data, (0, LINE + -len(data) % np.dtype(dtype).itemsize)).view(dtype)
