"""Axes of a plot: round ticks, and labels moved apart."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from at or below ``low`` to at or above ``high``."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    start = math.floor(low / step + 1e-9)
    stop = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(start, stop + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from at or below ``low`` to at or above ``high``; powers only when they are many.

    Raises
    ------
    ValueError
        If ``low`` is not positive.
    """
    if low <= 0 or high < low:
        raise ValueError(f"a logarithmic axis from {low} to {high}: a positive range is needed")
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    marks = [m * 10.0**e for e in range(first, last + 1) for m in steps]
    start = max(i for i, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    stop = min((i for i, mark in enumerate(marks) if mark >= high * (1 - 1e-9)), default=len(marks) - 1)
    return marks[start : max(stop, start + 1) + 1]


LABEL_HEIGHT = 17.0
CHARACTER_WIDTH = 7.0  # of a 13 px sans-serif, on average and a little more

Frame = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels, y downwards."""


def place_labels(
    labels: Sequence[str], marks: Sequence[Frame], frame: Frame
) -> list[tuple[float, float, float]]:
    """Where each label goes so that it covers no mark and no other label, as near to its mark as can be.

    Parameters
    ----------
    labels : sequence of str
    marks : sequence of Frame
        What each label's mark covers.
    frame : Frame
        Labels stay inside.

    Returns
    -------
    list of (left, middle, width)
        Left end, height of the middle, and estimated width; the first choice when no place is free.
    """
    taken = list(marks)
    result = []
    for label, mark in zip(labels, marks, strict=True):
        width = CHARACTER_WIDTH * len(label)
        places = [_box(mark, width, side, step, frame) for side, step in _OFFSETS]
        box = next((b for b in places if not any(_meet(b, other) for other in taken)), places[0])
        taken.append(box)
        result.append((box[0], (box[1] + box[3]) / 2, width))
    return result


# Side (-1 left, 0 centred, 1 right) and steps of a label's height up or down, in the order of preference.
_OFFSETS = [(side, step) for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, -6, 6) for side in (1, -1, 0)]


def _box(mark: Frame, width: float, side: int, step: int, frame: Frame) -> Frame:
    left = {1: mark[2] + 5, -1: mark[0] - 5 - width, 0: (mark[0] + mark[2] - width) / 2}[side]
    left = min(max(left, frame[0] + 2), frame[2] - width)
    half_mark = (mark[3] - mark[1]) / 2
    middle = (mark[1] + mark[3]) / 2 + step * LABEL_HEIGHT
    if side == 0 and step:
        middle += math.copysign(half_mark, step)
    middle = min(max(middle, frame[1] + LABEL_HEIGHT / 2), frame[3] - LABEL_HEIGHT / 2)
    return (left, middle - LABEL_HEIGHT / 2, left + width, middle + LABEL_HEIGHT / 2)


def _meet(a: Frame, b: Frame) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
