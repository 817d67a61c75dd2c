"""Plots as inline SVG whose colours are the page's own variables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from sparseflow.report.axes import LABEL_HEIGHT, Frame, log_ticks, place_labels, ticks
from sparseflow.report.document import Lines, Point, Scatter

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 18, 52
LARGEST_RADIUS = 11.0
SMALLEST_RADIUS = 3.5


@dataclass(frozen=True)
class _Scale:
    ticks: list[float]
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixels; what is beyond the last tick is drawn there."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            low, high, value = (math.log(v) for v in (low, high, value))
        return self.start + (min(value, high) - low) / (high - low) * (self.end - self.start)


def radius(weight: float) -> float:
    """Radius in pixels of a circle whose area is proportional to ``weight``."""
    return max(SMALLEST_RADIUS, LARGEST_RADIUS * math.sqrt(max(weight, 0.0)))


def scatter(figure: Scatter) -> Markup:
    """The figure as an ``<svg>`` element."""
    furthest = max((p.x for p in figure.points), default=1.0)
    highs = [min(p.x_high, 1.4 * furthest) for p in figure.points if p.x_high is not None]
    x, y = _scales([0.0, furthest, *highs], [p.y for p in figure.points])
    marks = [_mark(p, x, y) for p in figure.points]
    return _svg(figure, [_axes(figure, x, y), *marks, *_labels(figure.points, x, y)])


def lines(figure: Lines) -> Markup:
    """The figure as an ``<svg>`` element, each curve named at its end."""
    xs, ys = [v for line in figure.lines for v in line.xs], [v for line in figure.lines for v in line.ys]
    x, y = _log_scales(xs, ys) if figure.log and xs else _scales(xs, ys)
    parts = [_axes(figure, x, y)]
    ends = []
    for line in figure.lines:
        dashed = ' stroke-dasharray="5 4"' if line.dashed else ""
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline class="{line.series}" points="{path}"{dashed}/>')
        ends.extend([Point(line.label, line.xs[-1], line.ys[-1], 0.0, line.series)] if line.xs else [])
    parts.extend(_mark(end, x, y) for end in ends)
    return _svg(figure, [*parts, *_labels(tuple(ends), x, y)])


def _scales(xs: list[float], ys: list[float]) -> tuple[_Scale, _Scale]:
    low, high = min(ys, default=0.0), max(ys, default=1.0)
    margin = 0.08 * (high - low)
    x = _Scale(ticks(min(xs, default=0.0), max(xs, default=1.0)), LEFT, WIDTH - RIGHT)
    return x, _Scale(ticks(low - margin, high + margin), HEIGHT - BOTTOM, TOP)


def _log_scales(xs: list[float], ys: list[float]) -> tuple[_Scale, _Scale]:
    x = _Scale(log_ticks(min(xs), max(xs)), LEFT, WIDTH - RIGHT, log=True)
    return x, _Scale(log_ticks(min(ys), max(ys)), HEIGHT - BOTTOM, TOP, log=True)


def _svg(figure: Scatter | Lines, parts: list[str]) -> Markup:
    inner = "".join(parts)
    box = f"0 0 {WIDTH} {HEIGHT}"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(figure.alt)}">{inner}</svg>')


def _axes(figure: Scatter | Lines, x: _Scale, y: _Scale) -> str:
    lines = []
    for tick in y.ticks:
        at = f"{y(tick):.1f}"
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        lines.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at}" dy=".35em" text-anchor="end">{tick:g}</text>'
        )
    for tick in x.ticks:
        at = f"{x(tick):.1f}"
        base = HEIGHT - BOTTOM
        lines.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{base}" y2="{base + 4}"/>')
        lines.append(f'<text class="tick" x="{at}" y="{base + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(figure.x_label)}</text>"
    )
    height = (TOP + HEIGHT - BOTTOM) / 2
    lines.append(
        f'<text class="axis" transform="translate(14 {height}) rotate(-90)" text-anchor="middle">'
        f"{escape(figure.y_label)}</text>"
    )
    return "".join(lines)


def _mark(point: Point, x: _Scale, y: _Scale) -> str:
    at_x, at_y = x(point.x), y(point.y)
    whisker = ""
    if point.x_low is not None and point.x_high is not None:
        whisker = (
            f'<line class="whisker" x1="{x(point.x_low):.1f}" x2="{x(point.x_high):.1f}" '
            f'y1="{at_y:.1f}" y2="{at_y:.1f}"/>'
        )
    circle = f'cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius(point.weight):.1f}"'
    return f'{whisker}<circle class="{point.series}" {circle}><title>{escape(point.label)}</title></circle>'


def _extent(point: Point, x: _Scale, y: _Scale) -> Frame:
    """What a point's circle and whisker cover."""
    at_x, at_y, r = x(point.x), y(point.y), radius(point.weight)
    left = at_x if point.x_low is None else x(point.x_low)
    right = at_x if point.x_high is None else x(point.x_high)
    return (min(at_x - r, left), at_y - r, max(at_x + r, right), at_y + r)


def _labels(points: tuple[Point, ...], x: _Scale, y: _Scale) -> list[str]:
    frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    places = place_labels([p.label for p in points], [_extent(p, x, y) for p in points], frame)
    labels = []
    for point, (left, middle, width) in zip(points, places, strict=True):
        centre_x, centre_y, r = x(point.x), y(point.y), radius(point.weight)
        near = min(max(centre_x, left), left + width)
        if abs(middle - centre_y) > 1.2 * LABEL_HEIGHT:  # too far to see whose it is: a line leads there
            away = math.hypot(near - centre_x, middle - centre_y)
            start_x, start_y = (
                centre + (end - centre) * r / away for centre, end in ((centre_x, near), (centre_y, middle))
            )
            end_y = middle - math.copysign(LABEL_HEIGHT / 2, middle - centre_y)
            start = f'x1="{start_x:.1f}" y1="{start_y:.1f}"'
            labels.append(f'<line class="leader" {start} x2="{near:.1f}" y2="{end_y:.1f}"/>')
        text = f'<text class="label" x="{left:.1f}" y="{middle:.1f}" dy=".35em">{escape(point.label)}</text>'
        labels.append(text)
    return labels
