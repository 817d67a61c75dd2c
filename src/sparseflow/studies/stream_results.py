"""The file of the stream benchmark: times of a frame of which a part changed, and how far the change reached.

Stored are measured things; ratios and bounds are properties.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class StepRecord:
    """One operator of a frame.

    Attributes
    ----------
    name : str
    changed : float
        Fraction of the result's pixels that came out different.
    tiles, tiles_total : int
        Recomputed ones, and those that cover the map.
    tile : (int, int)
        Rows and columns of a tile.
    macs, macs_reached : int
        Dense multiply-accumulates of the operator, and those of the pixels that the change reaches.
    time_s : float
    """

    name: str
    changed: float
    tiles: int
    tiles_total: int
    tile: tuple[int, int]
    macs: int
    macs_reached: int
    time_s: float


@dataclass(frozen=True)
class StreamRun:
    """One case: median times of calls in turn.

    Attributes
    ----------
    fraction : float
        Of the frame that changed.
    place : str
        ``corner`` or ``centre``, a square region; ``scattered``, tiles of 16 x 16 pixels.
    threshold : float
    stream_s, dense_s : float
        A call of the stream engine, and of the dense engine on the same frames.
    error : float
        Largest difference of the results, over the largest result.
    rest_s : float
        Of the stream's call: operators that run whole.
    steps : tuple of StepRecord
    """

    fraction: float
    place: str
    threshold: float
    stream_s: float
    dense_s: float
    error: float
    rest_s: float
    steps: tuple[StepRecord, ...]

    @property
    def speedup(self) -> float:
        """Over full recomputation."""
        return self.dense_s / self.stream_s

    @property
    def bound(self) -> float:
        """How much less there is to multiply: the limit of the speed-up when all else is equal."""
        reached = sum(s.macs_reached for s in self.steps)
        return sum(s.macs for s in self.steps) / reached if reached else float("inf")


@dataclass(frozen=True)
class StreamResults:
    """The file of ``benchmarks/streams.py``."""

    machine: str
    model: str = ""
    cases: dict[str, StreamRun] = field(default_factory=dict)
    command: str = ""
    kind: Literal["streams"] = "streams"
