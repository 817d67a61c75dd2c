"""Candidates and cost model of the convolutions on indexed maps."""

from __future__ import annotations

import math
from collections.abc import Callable

from sparseflow.kernels.layouts.indexed import WORD
from sparseflow.kernels.template import Candidate
from sparseflow.kernels.workload import Workload

BIT_CYCLES = 2.0  # to find a set bit and load its value
LOOP_CYCLES = 7.0  # to begin and leave a loop over bits that repeats for every kernel position and block
MISSED_CYCLES = (
    34.0  # where the bits of both sides decide: no length repeats, so each loop's end is mispredicted
)
HIDDEN_CYCLES = 2.5  # of that, for each vector of the block: multiply-adds still under way


def pixel_candidates(workload: Workload, kept: Callable[[int], float]) -> list[dict[str, int]]:
    """Vectors of filters VB, kernel positions at once and rows of a band; ``kept(VB)`` is the weights' density."""
    lanes = workload.vectors.lanes
    vectors = -(-workload.filters // lanes)
    (kh, kw), found = workload.kernel_size, []
    bands = sorted({min(workload.out_height, size) for size in (8, 64)})
    share = -(-workload.out_height // workload.threads)
    most = workload.target.caches.l1 * 4 // 3  # a part of the weights may come from L2
    for vb in (1, 2, 4, 8):
        if vb > workload.vectors.accumulators or (vb > 1 and vb // 2 >= vectors):
            continue
        for taps in sorted({1, kw, kh * kw}):
            weights = taps * min(WORD, workload.channels) * kept(vb) * vb * lanes * workload.sums.nbytes
            if taps == 1 or weights <= most:
                found += [{"VB": vb, "taps": taps, "band": min(b, share)} for b in bands]
    return [dict(t) for t in sorted({tuple(sorted(p.items())) for p in found})]


def pixel_cycles(workload: Workload, candidate: Candidate, kept: float) -> float:
    """Cycles of a layer of which ``kept`` of the blocks' weights are there."""
    p, lanes, rate = candidate.parameters, workload.vectors.lanes, workload.vectors.per_cycle
    positions = math.prod(workload.kernel_size)
    words, vb = -(-workload.channels // WORD), p["VB"]
    steps = words * positions / p["taps"]
    blocks = math.ceil(-(-workload.filters // lanes) / vb)
    bits = workload.channels * positions * workload.map_density * kept
    partial = (2.5 * vb if steps > 1 else vb) / rate
    leave = LOOP_CYCLES if kept == 1.0 else max(LOOP_CYCLES, MISSED_CYCLES - HIDDEN_CYCLES * vb)
    spot = bits * max(vb / rate + 0.7, BIT_CYCLES) + words * positions * leave + steps * (partial + 4)
    pixels = workload.batch * workload.out_height * workload.out_width
    return pixels * blocks * spot / workload.threads
