"""The cost model of the lane convolutions: cycles from loads, multiply-adds and the caches that feed them."""

from __future__ import annotations

import math

from sparseflow.kernels.template import Candidate
from sparseflow.kernels.workload import Workload

MAP_BYTES_PER_CYCLE = 20.0  # between a core and the L3 cache, as far as it is not hidden
LEVEL_STORE = 4.0
"""Times the cycles of a float32 result that one in levels takes: scaled, rounded and joined."""
PASSED_CYCLES = 1.5  # for one vector of a channel that only bias and residual reach


def tile_choices(workload: Workload, r: int) -> list[tuple[int, int]]:
    """(rows, V) for blocks of ``r`` filters whose accumulators fill the registers without spilling."""
    bh, bw = workload.output_layout.block
    found: set[tuple[int, int]] = set()
    for rows in {1, 2, 3, 4, 7}:
        for v in {math.ceil(bw / parts) for parts in range(1, bw + 1)}:
            if rows <= bh and workload.vectors.holds(r, rows * v):
                found.add((rows, v))
    full = max((r * rows * v for rows, v in found), default=0)
    good = [(rows, v) for rows, v in found if r * rows * v >= min(full, 8) and r * rows * v >= 0.5 * full]
    return sorted(good) or [(1, 1)]


def large_map(workload: Workload) -> bool:
    """True when the output map of one image does not fit the L2 cache."""
    return workload.output_bytes > workload.target.caches.l2


def tile_cycles(workload: Workload, candidate: Candidate, taps_per_block: float) -> float:
    """Cycles for a whole layer whose blocks of R filters have ``taps_per_block`` taps on average; passed ones none."""
    p = candidate.parameters
    r, rows, v = p["R"], p["rows"], p["V"]
    bh, bw = workload.output_layout.block
    rate = workload.vectors.per_cycle
    operations = workload.target.operations(workload.maps)
    channels = workload.channels // workload.groups
    chunk = p.get("chunk", 0) or channels
    chunks = math.ceil(channels / chunk)
    total = 0.0
    for rows_now, row_tiles in _parts(bh, rows):
        for v_now, col_tiles in _parts(bw, v):
            spots = rows_now * v_now
            taps = taps_per_block / chunks
            load = _load_cycles(workload, chunk, rows_now, v_now)
            per_tap = max(
                r * spots * 1.02 * operations / rate, spots * load / rate + 0.5 * r + 1.0, 4.2 * 1.0
            )
            stores = r * spots * (LEVEL_STORE if workload.quantised else 1.0)
            partial = (2 * r * spots * 1.2 if chunks > 1 else stores) / rate
            total += row_tiles * col_tiles * chunks * (taps * per_tap + partial + 14)
    image = total * workload.blocks(r) + _passed_cycles(workload, r)
    return (image * workload.batch + _traffic_cycles(workload, candidate, chunks)) / workload.threads


def pattern_cycles(workload: Workload, candidate: Candidate) -> float:
    """Cycles of a whole layer whose kernels run through one straight-line body for each pattern."""
    p = candidate.parameters
    rows, v = p["rows"], p["V"]
    kw = workload.kernel_size[1]
    bh, bw = workload.output_layout.block
    rate = workload.vectors.per_cycle
    chunk = p["chunk"] or workload.channels
    chunks = math.ceil(workload.channels / chunk)
    total = 0.0
    for rows_now, row_tiles in _parts(bh, rows):
        for v_now, col_tiles in _parts(bw, v):
            spots = rows_now * v_now
            load = _load_cycles(workload, chunk, rows_now, v_now)
            cycles = 14.0 + (2 * spots * 1.2 if chunks > 1 else spots) / rate
            for mask, share in workload.patterns:
                places = [divmod(i, kw) for i in range(mask.bit_length()) if mask >> i & 1]
                touched = {
                    (y * workload.stride[0] + ky, x * workload.stride[1] + kx)
                    for ky, kx in places
                    for y in range(rows_now)
                    for x in range(v_now)
                }
                body = max(1.02 * len(places) * spots, len(touched) * load) / rate + len(places) + 3
                cycles += share * chunk * body + min(1.0, share * chunk) * 15
            total += row_tiles * col_tiles * chunks * cycles
    image = total * workload.blocks(1) + _passed_cycles(workload, 1)
    return (image * workload.batch + _traffic_cycles(workload, candidate, chunks)) / workload.threads


def _passed_cycles(workload: Workload, r: int) -> float:
    """Cycles of one image's channels behind the blocks of ``r`` filters."""
    bh, bw = workload.output_layout.block
    return (workload.filters - workload.blocks(r) * r) * bh * bw * PASSED_CYCLES / workload.vectors.per_cycle


def _parts(extent: int, tile: int) -> list[tuple[int, int]]:
    tile = min(tile, extent)
    full, rest = divmod(extent, tile)
    return [(tile, full)] + ([(rest, 1)] if rest else [])


def _load_cycles(workload: Workload, chunk: int, rows: int, v: int) -> float:
    """Cycles for one vector load: one from L1, two from L2, between them as the planes of a tile outgrow L1.

    The planes may be larger than L1: a block of filters reads a part of them.
    """
    kh, kw = workload.kernel_size
    touched = (rows * workload.stride[0] + kh - 1) * (v * workload.stride[1] + kw - 1)
    outgrown = chunk * touched * workload.vectors.lanes * workload.maps.nbytes / workload.target.caches.l1
    return 1.05 + 1.05 * min(1.0, max(0.0, math.log2(outgrown) / 2))


def _traffic_cycles(workload: Workload, candidate: Candidate, chunks: int) -> float:
    """Cycles in which maps that do not fit the L2 cache travel; loads of a tap kernel hide little of them."""
    p = candidate.parameters
    source, result = workload.input_bytes, workload.output_bytes
    passes = 1 if p.get("order", 0) == 2 else chunks
    moved = sum(
        size * times
        for size, times in ((source, 1), (result, 2 * passes - 1 + workload.residual))
        if size > workload.target.caches.l2
    )
    return workload.batch * moved / MAP_BYTES_PER_CYCLE
