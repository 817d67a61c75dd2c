"""Figures of a document on matplotlib's canvas: one drawing for SVG and PNG alike.

Imported by `images` when a figure is drawn, so that a report on the terminal needs no matplotlib. Nothing here uses
`pyplot`, whose figures are global.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from sparseflow.report.colours import COLOURS, INK, LINE, PAGE, QUIET
from sparseflow.report.document import Bars, Figure, Lines, Panels, Pictures, Point, Scatter, Values

STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names are shown as they are
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}
"""What differs from matplotlib's own defaults."""

WIDTH = 7.6  # inches
PANEL = (3.5, 2.9)
BAR, TILE = 0.3, 1.75  # height of a bar, side of a picture
MARKERS = "os^DvPX*<>phd8H"
LARGEST, SMALLEST = 9.0, 3.0  # radius of a point, in points
STEPS = (0, 1, -1, 2, -2, 3, -3, 4, -4, 6, -6)  # lines of text up or down, in the order of preference
FAINT = (0.50, 0.53, 0.58, 0.18)


def canvas(figure: Figure, titled: bool) -> Any:
    """The drawn figure, its title above it if asked for; to be called and saved under `STYLE`."""
    match figure:
        case Bars():
            drawn = _canvas(WIDTH, 0.75 + BAR * max(len(figure.bars), 1) + 0.2 * bool(figure.legend))
            _bars(drawn, figure)
        case Scatter():
            drawn = _canvas(WIDTH, 4.6)
            _scatter(drawn, figure)
        case Lines():
            drawn = _canvas(WIDTH, 4.2)
            axes = drawn.add_subplot()
            _curves(axes, figure, {})
            if not figure.log:
                low, high = axes.get_xlim()
                axes.set_xlim(low, high + 0.13 * (high - low))  # for the last curve's name
            ends = [Point(x.label, x.xs[-1], x.ys[-1], 0.0, x.series) for x in figure.lines if x.xs]
            _name(axes, ends)
        case Panels():
            rows = math.ceil(len(figure.plots) / figure.columns)
            drawn = _canvas(PANEL[0] * figure.columns, PANEL[1] * rows + 0.6)
            _panels(drawn, figure, rows)
        case Pictures():
            drawn = _strips(figure) if figure.wide else _tiles(figure)
    if titled:
        drawn.set_size_inches(drawn.get_figwidth(), drawn.get_figheight() + 0.3)
        drawn.suptitle(figure.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return drawn


def radius(weight: float) -> float:
    """Radius in points of a circle whose area is proportional to ``weight``."""
    return max(SMALLEST, LARGEST * math.sqrt(max(weight, 0.0)))


def _canvas(width: float, height: float) -> Any:
    return Canvas(figsize=(width, height), layout="constrained")


def _bars(drawn: Any, figure: Bars) -> None:
    axes = drawn.add_subplot()
    axes.set_yticks(range(len(figure.bars)), [bar.label for bar in figure.bars])
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, figure.longest)
    axes.set_ylim(max(len(figure.bars), 1) - 0.5, -0.5)
    axes.set_xlabel(figure.unit)
    for row, bar in enumerate(figure.bars):
        left = 0.0
        for series, value in bar.parts:
            axes.barh(row, value, left=left, height=0.66, color=COLOURS[series])
            left += value
        end = left
        if bar.low is not None and bar.high is not None:
            end = max(left, min(bar.high, figure.longest))
            middle = min(left, figure.longest)
            reach = [[max(middle - bar.low, 0.0)], [max(end - middle, 0.0)]]
            axes.errorbar(middle, row, xerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        text = axes.annotate(
            bar.text, (end, row), (6, 0), textcoords="offset points", va="center", annotation_clip=False
        )
        text.set_clip_on(False)
    if figure.legend:
        patches = [Patch(color=COLOURS[series], label=label) for series, label in figure.legend]
        drawn.legend(handles=patches, loc="outside lower left", ncols=len(patches), labelcolor=QUIET)


def _axes_of(axes: Any, figure: Scatter | Lines) -> None:
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)


def _scatter(drawn: Any, figure: Scatter) -> None:
    axes = drawn.add_subplot()
    _axes_of(axes, figure)
    furthest = max((point.x for point in figure.points), default=1.0) or 1.0
    reach = 0.0
    for i, point in enumerate(figure.points):
        if point.x_low is not None and point.x_high is not None:
            high = min(point.x_high, 1.4 * furthest)
            reach = max(reach, high)
            axes.hlines(point.y, point.x_low, high, color=INK, lw=1, zorder=2)
        (mark,) = axes.plot(
            point.x,
            point.y,
            "o",
            ms=2 * radius(point.weight),
            color=COLOURS[point.series],
            mec=PAGE,
            zorder=3,
        )
        mark.set_gid(f"point-{i}")
    axes.set_xlim(0, 1.06 * max(furthest, reach))
    axes.margins(y=0.16)
    _name(axes, figure.points)


def _curves(axes: Any, figure: Lines, markers: dict[str, str]) -> None:
    """Draws the lines; ``markers`` keeps which mark stands for which label."""
    _axes_of(axes, figure)
    if figure.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for line in figure.lines:
        how: dict[str, Any] = {"color": COLOURS[line.series], "label": line.label, "zorder": 3}
        if len(line.xs) == 1:
            marker = markers.setdefault(line.label, MARKERS[len(markers) % len(MARKERS)])
            axes.plot(line.xs, line.ys, marker, ms=6.5, mec=PAGE, mew=0.7, **how)
        else:
            axes.plot(line.xs, line.ys, "--" if line.dashed else "-", lw=1.1 if line.dashed else 1.8, **how)
    if figure.log:
        _log_ticks(axes)
    elif all(x.is_integer() for line in figure.lines for x in line.xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log_ticks(axes: Any) -> None:
    """Round numbers, the more of them the shorter the axis."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        fine = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 8 * low else (1.0, 2.0, 5.0)
        steps = fine if high < 300 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _panels(drawn: Any, figure: Panels, rows: int) -> None:
    named: dict[str, Any] = {}
    markers: dict[str, str] = {}
    grid = drawn.subplots(rows, figure.columns, sharex=True, sharey=True, squeeze=False).flat
    for i, (axes, plot) in enumerate(zip(grid, figure.plots, strict=False)):
        axes.set_title(plot.title, loc="left", fontsize=9)
        _curves(axes, plot, markers)
        axes.tick_params(labelbottom=i + figure.columns >= len(figure.plots))
        axes.set_xlabel(plot.x_label if i + figure.columns >= len(figure.plots) else "")
        axes.set_ylabel("" if i % figure.columns else plot.y_label)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    for axes in grid[len(figure.plots) :]:
        axes.set_visible(False)
    marks = [y for plot in figure.plots for line in plot.lines if len(line.xs) == 1 for y in line.ys]
    if marks and all(plot.log for plot in figure.plots):
        grid[0].set_ylim(bottom=min(marks) / 1.6)  # limits drawn as lines may go on far below
        _log_ticks(grid[0])
    columns = math.ceil(len(named) / max(math.ceil(len(named) / 7), 1)) or 1
    drawn.legend(named.values(), named, loc="outside lower center", ncols=columns, fontsize=8.5)


def _tiles(figure: Pictures) -> Any:
    columns = max(min(len(figure.pictures), 4), 1)
    rows = math.ceil(len(figure.pictures) / columns)
    drawn = _canvas(max(TILE * columns, WIDTH / 2) + 0.7 * bool(figure.scale), (TILE + 0.4) * max(rows, 1))
    for i, picture in enumerate(figure.pictures):
        axes = drawn.add_subplot(rows, columns, i + 1)
        axes.set_title(textwrap.fill(picture.title, 28), loc="left", fontsize=8)
        _picture(axes, picture.values, picture.series)
    if figure.scale and figure.pictures:
        _scale_bar(drawn, figure)
    return drawn


def _scale_bar(drawn: Any, figure: Pictures) -> None:
    """What the shades stand for, beside all pictures."""
    mapped = ScalarMappable(Normalize(0.0, 1.0), _shades(figure.pictures[0].series))
    bar = drawn.colorbar(
        mapped, ax=drawn.axes, label=figure.scale, shrink=min(1.0, 3.0 / drawn.get_figheight())
    )
    bar.outline.set_visible(False)


def _strips(figure: Pictures) -> Any:
    """One below the other, each as high as its rows ask for."""
    shares = [p.values.shape[0] / max(p.values.shape[1], 1) for p in figure.pictures] or [1.0]
    heights = [min(max(WIDTH * share, 0.15), 4.0) + 0.3 for share in shares]
    drawn = _canvas(WIDTH, sum(heights))
    grid = drawn.add_gridspec(len(heights), 1, height_ratios=heights)
    for cell, picture in zip(grid, figure.pictures, strict=False):
        axes = drawn.add_subplot(cell)
        axes.set_title(picture.title, loc="left", fontsize=8)
        _picture(axes, picture.values, picture.series)
    return drawn


def _picture(axes: Any, values: Values, series: str) -> None:
    axes.set_axis_off()
    axes.set_anchor("W")
    axes.imshow(values, cmap=_shades(series), vmin=0.0, vmax=1.0)


def _shades(series: str) -> Any:
    """From faint grey to the full colour; gaps are transparent."""
    shades = LinearSegmentedColormap.from_list(series, [FAINT, to_rgba(COLOURS[series])])
    return shades.with_extremes(bad=(0, 0, 0, 0))


def _name(axes: Any, points: Sequence[Point]) -> None:
    """Writes each point's label beside it where it covers no point and no other label; a line leads to far ones."""
    axes.figure.draw_without_rendering()  # places the axes
    frame = axes.get_window_extent()
    dot = axes.figure.dpi / 72
    centres = [axes.transData.transform((p.x, p.y)) for p in points]
    taken = [
        Bbox.from_extents(*(c - dot * radius(p.weight)), *(c + dot * radius(p.weight)))
        for c, p in zip(centres, points, strict=True)
    ]
    taken += [
        Bbox.from_extents(
            *axes.transData.transform((p.x_low, p.y)) - 1, *axes.transData.transform((p.x_high, p.y)) + 1
        )
        for p in points
        if p.x_low is not None and p.x_high is not None
    ]
    for point in points:
        for step, side in ((step, side) for step in STEPS for side in (1, -1)):
            text = _label(axes, point, side, step)
            box = text.get_window_extent()
            within = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if within and not box.count_overlaps(taken):
                break
            text.remove()
        else:
            step, text = 0, _label(axes, point, 1, 0)
        taken.append(text.get_window_extent())
        if abs(step) > 1:  # too far to see whose it is
            leader = {
                "arrowstyle": "-",
                "color": QUIET,
                "lw": 0.5,
                "shrinkA": 0,
                "shrinkB": radius(point.weight),
            }
            line = axes.annotate(
                "", (point.x, point.y), text.xyann, textcoords="offset points", arrowprops=leader
            )
            line.set_in_layout(False)


def _label(axes: Any, point: Point, side: int, step: int) -> Any:
    text = axes.annotate(
        point.label,
        (point.x, point.y),
        (side * (radius(point.weight) + 3), 11 * step),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        zorder=4,
    )
    text.set_in_layout(False)
    return text
