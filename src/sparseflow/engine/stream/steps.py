"""The steps of a stream at run time: each recomputes what its inputs' changes reach, and says what it changed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

from sparseflow.core.element_type import FLOAT32
from sparseflow.engine.stream.tiles import PartKernel
from sparseflow.kernels.incremental.operators import KeptLayout
from sparseflow.kernels.incremental.tiles import Tiles
from sparseflow.kernels.workload import Array

ALIGNMENT = 64
Function = Any


def shared(shape: tuple[int, ...], dtype: str = FLOAT32.name) -> tuple[Array, Any]:
    """Zeros that NumPy and TVM both see, at an address that vectors like."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    array = raw[first : first + count].view(dtype).reshape(shape)
    return array, tvm.runtime.from_dlpack(array)


def shared_copy(array: Array) -> Any:
    """A TVM tensor of ``array`` in NumPy's memory, which comes in huge pages: much faster to stream from."""
    copy, tensor = shared(array.shape, str(array.dtype))
    copy[:] = array
    return tensor


class KeptMap:
    """A map of the network as the last frame left it, and which of its pixels that frame changed.

    Attributes
    ----------
    layout : KeptLayout
    values, mask : tvm tensors
    limit : float
        A pixel counts as changed when a channel differs by more.
    changed : int
        Changed pixels.
    """

    def __init__(self, layout: KeptLayout) -> None:
        self.layout = layout
        self._values, self.values = shared((layout.size,))
        self._mask, self.mask = shared((layout.mask_size,), "int8")
        self.limit, self.changed = 0.0, 0

    def clear(self) -> None:
        """Before a frame: no pixel has changed."""
        self._mask[:] = 0
        self.changed = 0

    def count(self) -> None:
        """Counts the changed pixels."""
        self.changed = int(np.count_nonzero(self._mask))

    @property
    def pixels(self) -> int:
        """All pixels."""
        return self.layout.height * self.layout.width

    @property
    def chw(self) -> Array:
        """The map as a (channels, height, width) view."""
        m = self.layout
        view = self._values.reshape(m.rows, m.cols, m.depth)
        top, left = m.margin[:2]
        return view[top : top + m.height, left : left + m.width, : m.channels].transpose(2, 0, 1)


@dataclass(frozen=True)
class StepChange:
    """What one frame changed in one step.

    Attributes
    ----------
    name : str
    pixels, pixels_total : int
        Changed ones of the result, and all.
    tiles, tiles_total : int
        Recomputed ones, and all of their size; pixels for a step that works by pixels.
    tile : (int, int)
        Rows and columns of a tile.
    macs, macs_reached : int
        Dense multiply-accumulates of the operator, and those of what the changes of its inputs reach.
    time_s : float
    """

    name: str
    pixels: int
    pixels_total: int
    tiles: int
    tiles_total: int
    tile: tuple[int, int]
    time_s: float
    macs: int = 0
    macs_reached: int = 0


@dataclass(frozen=True)
class Part:
    """One compiled `PartKernel` with what it reads.

    Attributes
    ----------
    gathers : tuple of callables
        One for each map it reads.
    kernel, scatter : callable
    constants : tuple of tensors
    lanes : tuple of tensors
        The groups' inputs, one for each map, and their result.
    """

    spec: PartKernel
    gathers: tuple[Function, ...]
    kernel: Function
    scatter: Function
    constants: tuple[Any, ...]
    lanes: tuple[Any, ...]

    def run(self, sources: Sequence[KeptMap], target: KeptMap, need: Any, found: Any, first: int) -> None:
        """Recomputes ``batch * lanes`` tiles from number ``first`` of the list ``found`` on."""
        for gather, source, lanes in zip(self.gathers, sources, self.lanes[:-1], strict=True):
            gather(source.values, found, first, lanes)
        self.kernel(self.lanes[0], *self.constants, *self.lanes[1:])
        self.scatter(self.lanes[-1], found, need, first, target.limit, target.values, target.mask)


@dataclass
class Size:
    """One tile size of a layer.

    Attributes
    ----------
    find : callable
        Lists the tiles to recompute.
    parts : tuple of Part
        The one for single groups first, then perhaps one for several groups.
    """

    tiles: Tiles
    find: Function
    parts: tuple[Part, ...]
    slots: int
    found: Any = field(init=False)
    count: Any = field(init=False)

    def __post_init__(self) -> None:
        self._found, self.found = shared((self.slots,), "int32")
        self._count, self.count = shared((1,), "int32")

    def look(self, need: Any, rows: Any) -> int:
        """How many tiles cover the needed pixels."""
        self.find(need, rows, self.found, self.count)
        return int(self._count[0])

    def calls(self, tiles: int) -> tuple[float, list[tuple[Part, int]]]:
        """Expected seconds for so many tiles, and the calls: the part, and the number of the first tile."""
        single, *several = self.parts
        lanes = single.spec.lanes
        groups, calls, first, cost = -(-tiles // lanes), [], 0, 0.0
        for part in several:
            batch = part.spec.batch
            while groups >= batch or groups * single.spec.time_s > part.spec.time_s:
                calls.append((part, first))
                first, groups, cost = first + batch * lanes, groups - batch, cost + part.spec.time_s
        for _ in range(groups):
            calls.append((single, first))
            first, cost = first + lanes, cost + single.spec.time_s
        return cost, calls


class Step(ABC):
    """One operator.

    Attributes
    ----------
    name : str
    sources : tuple of KeptMap
    target : KeptMap
    macs : int
        Dense multiply-accumulates.
    """

    macs = 0

    def __init__(self, name: str, sources: tuple[KeptMap, ...], target: KeptMap) -> None:
        self.name, self.sources, self.target = name, sources, target

    def run(self) -> StepChange:
        """Recomputes what has to be, marks what changed."""
        start = time.perf_counter()
        tiles, grid = 0, self._grid()
        if any(s.changed for s in self.sources):
            tiles, grid = self._recompute()
        target, time_s = self.target, time.perf_counter() - start
        return StepChange(
            self.name,
            target.changed,
            target.pixels,
            tiles,
            grid.count,
            grid.tile,
            time_s,
            self.macs,
            round(self.macs * self._reached()),
        )

    def _reached(self) -> float:
        """Fraction of the operator's multiplications that belong to changes."""
        return self.sources[0].changed / self.sources[0].pixels

    def _grid(self) -> Tiles:
        return Tiles(self.target.layout.height, self.target.layout.width, (1, 1))

    @abstractmethod
    def _recompute(self) -> tuple[int, Tiles]:
        """Brings the target up to date; how many tiles were computed, of which grid."""


class PixelStep(Step):
    """Pooling, an element-wise operator, concat or a linear layer: pixel by pixel."""

    def __init__(
        self, name: str, sources: tuple[KeptMap, ...], target: KeptMap, function: Function,
        constants: tuple[Any, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(name, sources, target)
        self._arguments = [*(t for s in sources for t in (s.values, s.mask)), *constants]
        self._function = function

    def _recompute(self) -> tuple[int, Tiles]:
        target = self.target
        self._function(*self._arguments, target.limit, target.values, target.mask)
        target.count()
        return target.changed, self._grid()


class LayerStep(Step):
    """A convolution: of its tile sizes, the one that is expected to take least for this frame."""

    def __init__(
        self, name: str, sources: tuple[KeptMap, ...], target: KeptMap, reach: Function, sizes: tuple[Size, ...]
    ) -> None:  # fmt: skip
        super().__init__(name, sources, target)
        self.sizes, self._reach = sizes, reach
        self._needed, self._need = shared((target.layout.mask_size,), "int8")
        self._rows = shared((target.layout.height,), "int8")[1]

    def _grid(self) -> Tiles:
        return self.sizes[0].tiles

    def _recompute(self) -> tuple[int, Tiles]:
        self._reach(*(s.mask for s in self.sources), self._need, self._rows)
        plans = []
        for size in self.sizes:
            tiles = size.look(self._need, self._rows)
            plans.append((*size.calls(tiles), tiles, size))
        _, calls, tiles, size = min(plans, key=lambda plan: plan[0])
        for part, first in calls:
            part.run(self.sources, self.target, self._need, size.found, first)
        self.target.count()
        return tiles, size.tiles

    def _reached(self) -> float:
        changed = any(s.changed for s in self.sources)
        return int(np.count_nonzero(self._needed)) / self.target.pixels if changed else 0.0

    def measure(self, repeats: int = 5) -> None:
        """Replaces the predicted times of the parts by measured ones."""
        for size in self.sizes:
            measured = []
            for part in size.parts:
                samples = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    part.run(self.sources, self.target, self._need, size.found, 0)
                    samples.append(time.perf_counter() - start)
                measured.append(replace(part, spec=replace(part.spec, time_s=float(np.median(samples)))))
            size.parts = tuple(measured)
