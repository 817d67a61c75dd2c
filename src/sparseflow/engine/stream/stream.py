"""Streams of frames: an engine that keeps its maps and recomputes only what a frame changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import Signature
from sparseflow.engine.runtime.memory import device_tensors, is_torch
from sparseflow.engine.runtime.threads import set_threads
from sparseflow.engine.stream.steps import Function, KeptMap, LayerStep, Step, StepChange
from sparseflow.engine.target.machine import machine_name
from sparseflow.kernels.incremental.operators import EVERY
from sparseflow.kernels.workload import Array


@dataclass(frozen=True)
class FrameChange:
    """What one call did.

    Attributes
    ----------
    steps : tuple of StepChange
        The frame itself first, then every operator that is run in parts.
    rest_s : float
        Time of the operators that are run whole; 0 when nothing before them changed.
    time_s : float
        Time of the call.
    """

    steps: tuple[StepChange, ...]
    rest_s: float
    time_s: float


@dataclass(frozen=True)
class StreamLayer:
    """How a layer is run in parts.

    Attributes
    ----------
    name, kernel : str
    tiles : tuple of ((int, int), int, float)
        For each kernel its tile, the groups of tiles in a call, and the seconds of a call.
    """

    name: str
    kernel: str
    tiles: tuple[tuple[tuple[int, int], int, float], ...]


class StreamEngine:
    """A compiled network for frames that resemble each other; called like an `Engine`.

    The first call, and the first after `reset`, computes everything; further calls recompute the tiles that the changes
    of the frame reach. With threshold 0 the result is bit by bit that of a first call with the same frame.

    Several Python threads may call it: each call is the next frame, in the order in which they get their turn.

    Attributes
    ----------
    threshold : float
        Fraction of a map's largest magnitude in the first frame; smaller differences are taken as none.
    last : FrameChange or None
        What the last call did.
    layers : tuple of StreamLayer
    """

    def __init__(
        self, signatures: tuple[tuple[Signature, ...], tuple[Signature, ...]], accept: Function,
        frame: KeptMap, steps: Sequence[Step], rest: Engine, boundary: Sequence[KeptMap], threshold: float,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = signatures
        self._accept, self._frame, self._steps = accept, frame, tuple(steps)
        self._rest, self._boundary, self.threshold = rest, tuple(boundary), threshold
        self.last: FrameChange | None = None
        self._results: tuple[Array, ...] | None = None
        self._turn = threading.Lock()

    @property
    def layers(self) -> tuple[StreamLayer, ...]:
        """The layers that are run in parts, with the tile sizes they choose from."""
        return tuple(
            StreamLayer(
                step.name,
                step.sizes[0].parts[0].spec.candidate.template,
                tuple(
                    (size.tiles.tile, part.spec.batch, part.spec.time_s)
                    for size in step.sizes
                    for part in size.parts
                ),
            )
            for step in self._steps
            if isinstance(step, LayerStep)
        )

    @property
    def threads(self) -> int:
        """Threads that one call uses."""
        return self._rest.threads

    @property
    def machine(self) -> str:
        """The machine it runs on."""
        return machine_name()

    def reset(self) -> None:
        """Forgets the last frame: the next call computes everything."""
        with self._turn:
            self._results = None

    def __call__(self, *inputs: Any) -> Any:
        """Runs the network on the next frame.

        Raises
        ------
        InputError
            If the number, the shape or the dtype of the inputs is not that of the engine, or its values are not in the
            CPU's memory.
        """
        (frame,) = device_tensors(inputs, self.inputs)
        with self._turn:
            set_threads(self.threads)
            copies: list[Any] = [np.array(r) for r in self._next(frame)]
        if is_torch(inputs[0]):
            import torch

            copies = [torch.from_numpy(c) for c in copies]
        return copies[0] if len(copies) == 1 else tuple(copies)

    def _next(self, frame: Any) -> tuple[Array, ...]:
        """The results for one more frame; they are the engine's own."""
        start = time.perf_counter()
        first, kept = self._results is None, self._results
        self._results = None  # a call that fails leaves maps of two frames
        changes = self._run(frame, first)
        begun = time.perf_counter()
        if kept is None or any(m.changed for m in self._boundary):
            out = self._rest(
                *(
                    np.ascontiguousarray(m.chw).reshape(s.shape)
                    for m, s in zip(self._boundary, self._rest.inputs, strict=True)
                )
            )
            kept = out if isinstance(out, tuple) else (out,)
        end = time.perf_counter()
        self._results = kept
        self.last = FrameChange(tuple(changes), end - begun, end - start)
        return kept

    def _run(self, frame: Any, first: bool) -> list[StepChange]:
        maps = [self._frame, *(step.target for step in self._steps)]
        for m in maps:
            m.clear()
            if first:
                m.limit = EVERY
        start = time.perf_counter()
        self._accept(frame, self._frame.limit, self._frame.values, self._frame.mask)
        self._frame.count()
        m = self._frame
        changes = [
            StepChange("frame", m.changed, m.pixels, m.changed, m.pixels, (1, 1), time.perf_counter() - start)
        ]
        changes += [step.run() for step in self._steps]
        if first:
            for m in maps:
                m.limit = self.threshold * float(np.abs(m.chw).max()) if self.threshold else 0.0
        return changes
