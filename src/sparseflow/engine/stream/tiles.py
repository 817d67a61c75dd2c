"""Tile sizes and kernels for the parts of a layer's map: which to build, and what a call of each costs.

All tile sizes of a layer share one packed weight and the order in which products are added up, so that without Winograd
a pixel's value does not depend on how it came to be recomputed, not by a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sparseflow.errors import CompileError
from sparseflow.kernels.incremental.operators import Window
from sparseflow.kernels.incremental.tiles import Tiles
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.workload import Layouts, Workload

MOVE_S = 1.5e-10  # to bring one value to the lanes, or back and compare it
BATCH = 4  # groups of tiles for which weights larger than the L2 cache are read once
PART = 3  # the side of the changed part for which the family is chosen: a third of the map's
Family = tuple[str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class PartKernel:
    """A layer's kernel for ``batch * lanes`` tiles.

    Attributes
    ----------
    workload : Workload
        The tiles as if they were one map.
    candidate : Candidate
    tiles : Tiles
    batch : int
    time_s : float
        Of a call with the moves to and from the lanes: predicted, or measured.
    """

    workload: Workload
    candidate: Candidate
    tiles: Tiles
    batch: int
    time_s: float

    @property
    def lanes(self) -> int:
        """Tiles of one group."""
        return self.workload.vectors.lanes

    @property
    def layouts(self) -> Layouts:
        """Of the groups of tiles."""
        output = self.workload.output_layout
        residual = replace(output, channels=self.workload.residual_channels or self.workload.filters)
        return Layouts(
            self.workload.input_layout(output), output, residual if self.workload.residual else None
        )

    @property
    def input_layout(self) -> LaneLayout:
        """Of the windows of the tiles."""
        return self.workload.input_layout(self.workload.output_layout)


def window_of(workload: Workload) -> Window:
    """What one output position of a layer reads."""
    reach = tuple(d * (k - 1) + 1 for d, k in zip(workload.dilation, workload.kernel_size, strict=True))
    return Window((reach[0], reach[1]), workload.stride, (-workload.padding[0], -workload.padding[1]))


def part_kernels(workload: Workload, exact: bool, label: str) -> list[PartKernel]:
    """The kernels of the family whose tiles cost least where a third of each side changed; the smallest tile first.

    Parameters
    ----------
    workload : Workload
        The whole layer.
    exact : bool
        Leave Winograd out.
    label : str
        Names the layer in errors.

    Raises
    ------
    CompileError
        If no template takes the layer.
    """
    best: tuple[float, list[PartKernel]] | None = None
    batches = (1, BATCH) if workload.weight_bytes > workload.target.caches.l2 else (1,)
    for step in (1, 2, 3, 4, 6):
        sizes = list(_sizes(workload, step))
        found = [
            (tiles, batch, _candidates(workload, tiles, batch, exact, step))
            for tiles in sizes
            for batch in (batches if tiles is sizes[0] else (1,))
        ]
        for family in set.intersection(*(set(c) for _, _, c in found)):
            kernels = [_kernel(workload, t, b, c[family]) for t, b, c in found]
            cost = _cost(workload, kernels)
            if best is None or cost < best[0]:
                best = cost, kernels
    if best is None:
        raise CompileError(
            f"{label}: no kernel on vector lanes takes this layer, so a stream cannot run it in parts"
        )
    return best[1]


def _sizes(workload: Workload, step: int) -> Iterator[Tiles]:
    """Tiles of about 4, twice that, and those of which ``lanes`` cover the map; all multiples of ``step``."""
    rows, cols = _grid(workload.vectors.lanes)
    height, width = workload.out_height, workload.out_width
    whole = tuple(-(-size // (n * step)) * step for size, n in ((height, rows), (width, cols)))
    small = step * max(1, (2 if max(whole) <= 4 else 4) // step)
    seen = set()
    for size in (small, 2 * small, max(whole)):
        tile = (min(size, whole[0]), min(size, whole[1]))
        if tile not in seen:
            seen.add(tile)
            yield Tiles(height, width, tile)


def _grid(lanes: int) -> tuple[int, int]:
    rows = 1 << (lanes.bit_length() - 1) // 2
    return rows, lanes // rows


def _part(workload: Workload, tiles: Tiles, batch: int) -> Workload:
    """One group of tiles as a map of its own, with the layer's padding around it."""
    size = []
    for i, n in enumerate(_grid(workload.vectors.lanes)):
        reach = workload.dilation[i] * (workload.kernel_size[i] - 1) + 1
        out = n * tiles.tile[i]
        size.append((out - 1) * workload.stride[i] + reach - workload.padding[i] - workload.padding[i + 2])
    return replace(workload, batch=batch, height=size[0], width=size[1], map_density=1.0)


def _candidates(
    workload: Workload, tiles: Tiles, batch: int, exact: bool, step: int
) -> dict[Family, tuple[Candidate, float]]:
    """The fastest of each family that computes outputs in units of ``step``, and its predicted seconds."""
    part = _part(workload, tiles, batch)
    found: dict[Family, tuple[Candidate, float]] = {}
    for template in (t for _, t in TEMPLATES.items() if t.layout == "lanes" and (t.exact or not exact)):
        if part.output_layout.block != tiles.tile or template.refusal(part) is not None:
            continue
        for candidate in template.candidates(part):
            if template.unit(candidate) != (step, step):
                continue
            shared = tuple(
                sorted((k, v) for k, v in candidate.parameters.items() if k not in ("rows", "V", "T"))
            )
            time_s = template.predict_cycles(part, candidate) / part.target.clock_hz
            family = template.name, shared
            if family not in found or time_s < found[family][1]:
                found[family] = candidate, time_s
    return found


def _kernel(workload: Workload, tiles: Tiles, batch: int, choice: tuple[Candidate, float]) -> PartKernel:
    part = _part(workload, tiles, batch)
    kernel = PartKernel(part, choice[0], tiles, batch, choice[1])
    moved = batch * (kernel.input_layout.size + part.output_layout.size)
    return replace(kernel, time_s=choice[1] + moved * MOVE_S)


def _cost(workload: Workload, kernels: list[PartKernel]) -> float:
    """Predicted seconds for a square part of the map."""
    side = (workload.out_height / PART, workload.out_width / PART)
    return min(
        math.ceil(math.prod(s / t + 1 for s, t in zip(side, k.tiles.tile, strict=True)) / (k.batch * k.lanes))
        * k.time_s
        for k in kernels
    )
