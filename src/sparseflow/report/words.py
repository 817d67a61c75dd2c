"""Numbers as text: units, digits, signs; a number and its unit stay on one line."""

from __future__ import annotations

import math
from collections.abc import Iterable

NBSP = "\u00a0"
_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((1024.0**2, "MiB"), (1024.0, "KiB"), (1.0, "B"))


def digits(value: float, significant: int = 3) -> str:
    """``value`` with that many significant digits, never in exponent form above 1e-3."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{significant - 1}e}"
    places = max(significant - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{places}f}"


def time_unit(seconds: Iterable[float]) -> tuple[float, str]:
    """Size and name of the unit that suits the largest of ``seconds``."""
    return _unit(seconds, _TIME)


def byte_unit(counts: Iterable[float]) -> tuple[float, str]:
    """Size and name of the unit that suits the largest of ``counts``."""
    return _unit(counts, _BYTES)


def _unit(values: Iterable[float], units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    largest = max(values, default=0.0)
    return next(((size, name) for size, name in units if largest >= size), units[-1])


def duration(seconds: float) -> str:
    """``1.23 ms``."""
    size, unit = time_unit([seconds])
    return f"{digits(seconds / size)}{NBSP}{unit}"


def span(seconds: float) -> str:
    """``28 s`` or ``12.4 min``: time one waits."""
    return f"{seconds:.0f}{NBSP}s" if seconds < 120 else f"{digits(seconds / 60)}{NBSP}min"


def nbytes(count: float) -> str:
    """``12.3 KiB``."""
    size, unit = byte_unit([count])
    return f"{digits(count / size)}{NBSP}{unit}"


def percent(fraction: float, places: int = 1) -> str:
    """``87.7 %`` of 0.877."""
    return f"{100 * fraction:.{places}f}{NBSP}%"


def times(ratio: float | None) -> str:
    """``2.41×``, or a dash when there is no ratio."""
    return "–" if ratio is None else f"{digits(ratio)}×"


def faster(ratio: float) -> str:
    """``2.41× faster``, ``1.30× slower`` or ``as fast``: a ratio of times in words."""
    if 0.98 <= ratio <= 1.02:
        return "as fast"
    return f"{digits(ratio)}× faster" if ratio > 1 else f"{digits(1 / ratio)}× slower"


def spread(low: float, high: float) -> str:
    """``96.1–108``."""
    return f"{digits(low)}–{digits(high)}"


def points(lost: float) -> str:
    """``−0.30`` for 0.30 percentage points lost, ``+0.10`` for points gained."""
    if abs(lost) < 0.005:
        return "±0.00"
    return f"{'−' if lost > 0 else '+'}{abs(lost):.2f}"


def shape(dims: Iterable[int]) -> str:
    """``64×64×3×3``."""
    return "×".join(str(d) for d in dims)
