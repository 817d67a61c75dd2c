"""Figures of a document as PNG files, for slides and papers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from sparseflow.errors import SparseflowError
from sparseflow.report import pixels
from sparseflow.report.axes import log_ticks
from sparseflow.report.document import Bars, Figure, Line, Lines, Panels, Pictures, Scatter
from sparseflow.report.pixels import LEVELS, SHADES
from sparseflow.report.svg import radius

DPI = 144
INK = "#1b2027"


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white.

    Raises
    ------
    SparseflowError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise SparseflowError(
            "report: matplotlib is not installed; install it with: pip install 'sparseflow[report]'"
        ) from error
    match figure:
        case Bars():
            canvas = Canvas(figsize=(8, 0.9 + 0.38 * len(figure.bars)))
            _bars(canvas, figure)
        case Scatter():
            canvas = Canvas(figsize=(8, 5))
            _scatter(canvas, figure)
        case Lines():
            canvas = Canvas(figsize=(8, 5))
            _lines(canvas, figure)
        case Panels():
            rows = -(-len(figure.plots) // figure.columns)
            canvas = Canvas(figsize=(4.6 * figure.columns, 3.9 * rows + 0.9), layout="constrained")
            _panels(canvas, figure)
        case Pictures():
            count = max(len(figure.pictures), 1)
            canvas = Canvas(figsize=(10, 1.3 * count) if figure.wide else (2.6 * count, 3.1))
            _pictures(canvas, figure)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _colour(series: str) -> tuple[float, float, float]:
    red, green, blue = pixels.COLOURS[series]
    return (red / 255, green / 255, blue / 255)


def _plain_axes(canvas: Any, title: str) -> Any:
    axes = canvas.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _bars(canvas: Any, figure: Bars) -> None:
    axes = _plain_axes(canvas, figure.title)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(range(len(figure.bars)), [bar.label for bar in figure.bars], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * figure.longest)
    for row, bar in enumerate(figure.bars):
        left = 0.0
        for series, value in bar.parts:
            axes.barh(row, value, left=left, height=0.62, color=_colour(series))
            left += value
        if bar.low is not None and bar.high is not None:
            high = min(bar.high, figure.longest)
            axes.hlines(row, bar.low, high, color=INK, lw=1.2)
            axes.vlines([bar.low, high], row - 0.14, row + 0.14, color=INK, lw=1.2)
        end = max(left, min(bar.high or 0.0, figure.longest)) + 0.012 * figure.longest
        axes.text(end, row, bar.text, va="center", fontsize=9, color=INK)
    if figure.legend:
        handles = [axes.barh(0, 0, color=_colour(series)) for series, _ in figure.legend]
        axes.legend(
            handles, [label for _, label in figure.legend], frameon=False, fontsize=8, loc="lower right"
        )


def _plot_axes(axes: Any, figure: Scatter | Lines) -> Any:
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.grid(axis="y", color="#dfe3e8", lw=0.8)
    axes.set_axisbelow(True)
    return axes


def _lines(canvas: Any, figure: Lines) -> None:
    axes = _plot_axes(_plain_axes(canvas, figure.title), figure)
    _curves(axes, figure, {})
    axes.legend(frameon=False, fontsize=9)


def _curves(axes: Any, figure: Lines, markers: dict[str, str]) -> None:
    """Draws the lines; ``markers`` keeps which mark stands for which label."""
    if figure.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for line in figure.lines:
        if len(line.xs) == 1:
            marker = markers.setdefault(line.label, _MARKERS[len(markers) % len(_MARKERS)])
            axes.plot(line.xs, line.ys, marker, **_style(line), ms=8, zorder=3)
        else:
            axes.plot(
                line.xs, line.ys, "--" if line.dashed else "-", **_style(line), lw=1.2 if line.dashed else 1.8
            )
    if figure.log:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            axis.set_ticks([t for t in log_ticks(*limits) if limits[0] <= t <= limits[1]])
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


_MARKERS = "os^DvPX*<>ph"


def _style(line: Line) -> dict[str, Any]:
    return {"color": _colour(line.series), "label": line.label}


def _panels(canvas: Any, figure: Panels) -> None:
    canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    rows = -(-len(figure.plots) // figure.columns)
    named: dict[str, Any] = {}
    markers: dict[str, str] = {}
    for i, plot in enumerate(figure.plots):
        axes = _plot_axes(canvas.add_subplot(rows, figure.columns, i + 1), plot)
        axes.set_title(plot.title, loc="left", fontsize=10, color=INK)
        _curves(axes, plot, markers)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    canvas.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )


def _scatter(canvas: Any, figure: Scatter) -> None:
    axes = _plot_axes(_plain_axes(canvas, figure.title), figure)
    for point in figure.points:
        if point.x_low is not None and point.x_high is not None:
            axes.hlines(point.y, point.x_low, point.x_high, color=INK, lw=1.2, zorder=2)
        size = (1.4 * radius(point.weight)) ** 2
        axes.scatter([point.x], [point.y], s=size, color=_colour(point.series), zorder=3)
        offset = (0.8 * radius(point.weight) + 5, 5)
        axes.annotate(point.label, (point.x, point.y), xytext=offset, textcoords="offset points", fontsize=9)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.6 * max((point.x for point in figure.points), default=1.0))


def _pictures(canvas: Any, figure: Pictures) -> None:
    canvas.suptitle(figure.title, x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK)
    count = len(figure.pictures)
    for i, picture in enumerate(figure.pictures):
        axes = canvas.add_subplot(count, 1, i + 1) if figure.wide else canvas.add_subplot(1, count, i + 1)
        axes.set_axis_off()
        axes.set_title(picture.title, fontsize=9, loc="left")
        from matplotlib.colors import ListedColormap, to_rgb

        kept = np.array(to_rgb(_colour(picture.series)))
        shades = [1 + (kept - 1) * (0.08 + 0.92 * i / (LEVELS - 1)) for i in range(LEVELS)]
        colours = ListedColormap([(1, 1, 1), (0.9, 0.91, 0.92), kept, *shades])
        axes.imshow(picture.pixels, cmap=colours, vmin=0, vmax=SHADES + LEVELS - 1, interpolation="nearest")
