"""A report before it has a file format: a headline and sections of a few kinds of block.

The builders in `sparseflow.report.kinds` make a `Document` of a result, the renderers (`html`, `markdown`,
`images`, `terminal`) draw any `Document`. Neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sparseflow.errors import SparseflowError
from sparseflow.registry import Registry

SERIES = ("neutral", "peer", "s1", "s2", "s3", "s4", "index")
"""Colour roles; `sparseflow.report.colours` has the colours."""

Values = npt.NDArray[np.float32]


def _check_series(series: str) -> None:
    if series not in SERIES:
        raise SparseflowError(f"report: unknown colour role {series!r}; known: {', '.join(SERIES)}")


@dataclass(frozen=True)
class Card:
    """One figure that a reader should see first."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """A row of figures."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Ledger:
    """What was gained and what it cost, side by side; each entry names what it is about first."""

    gained: tuple[tuple[str, str], ...]
    paid: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table; ``fraction`` draws a bar of that part of the cell's width behind the text."""

    text: str
    fraction: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """A column's title; ``number`` aligns it to the right."""

    title: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under columns; every row has a cell for each column."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise SparseflowError(
                    f"report table {self.caption!r}: a row has {len(row)} cells, not {len(self.columns)}"
                )

    @classmethod
    def of(cls, caption: str, titles: Sequence[str | Column], rows: Iterable[Iterable[str | Cell]]) -> Table:
        """A table of plain texts and cells; a plain title is one of numbers, the first excepted."""
        columns = (t if isinstance(t, Column) else Column(t, number=i > 0) for i, t in enumerate(titles))
        cells = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
        return cls(caption, tuple(columns), tuple(cells))

    @classmethod
    def facts(cls, caption: str, facts: Mapping[str, str]) -> Table:
        """Names and what each stands for, under no titles; those that are empty are left out."""
        return cls.of(caption, ("", Column("", number=False)), (fact for fact in facts.items() if fact[1]))


@dataclass(frozen=True)
class Bar:
    """One horizontal bar of stacked parts, with an optional spread.

    Attributes
    ----------
    parts : tuple of (str, float)
        Colour role and length of each part, in the figure's unit.
    text : str
        What stands beside the bar.
    low, high : float or None
        Ends of the spread (10th and 90th percentile), in the figure's unit.
    """

    label: str
    parts: tuple[tuple[str, float], ...]
    text: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for series, _ in self.parts:
            _check_series(series)

    @property
    def length(self) -> float:
        """Sum of the parts."""
        return sum(value for _, value in self.parts)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars on one scale that starts at zero."""

    name: str
    title: str
    unit: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()
    caption: str = ""

    @property
    def longest(self) -> float:
        """The end of the scale: the longest bar or spread, but not much more than the longest bar."""
        longest = max((bar.length for bar in self.bars), default=0.0)
        spread = max((bar.high or 0.0 for bar in self.bars), default=0.0)
        return max(longest, min(spread, 1.4 * longest)) or 1.0

    @property
    def alt(self) -> str:
        """The figure in words."""
        return f"{self.title}: " + "; ".join(f"{bar.label} {bar.text}" for bar in self.bars)


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot; the circle's area is proportional to ``weight`` (0 to 1)."""

    label: str
    x: float
    y: float
    weight: float
    series: str
    x_low: float | None = None
    x_high: float | None = None

    def __post_init__(self) -> None:
        _check_series(self.series)


@dataclass(frozen=True)
class Scatter:
    """Points over two linear axes."""

    name: str
    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    caption: str = ""

    @property
    def alt(self) -> str:
        """The figure in words."""
        points = "; ".join(f"{p.label}: {p.x:.4g}, {p.y:.4g}" for p in self.points)
        return f"{self.title} ({self.x_label}, {self.y_label}): {points}"


@dataclass(frozen=True)
class Line:
    """One curve, or a mark if it has one point; as many ``ys`` as ``xs``. ``dashed`` is for limits."""

    label: str
    series: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    dashed: bool = False

    def __post_init__(self) -> None:
        _check_series(self.series)
        if len(self.xs) != len(self.ys):
            raise SparseflowError(f"report line {self.label!r}: {len(self.xs)} xs but {len(self.ys)} ys")


@dataclass(frozen=True)
class Lines:
    """Curves over two axes, both linear or (``log``) both logarithmic."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    caption: str = ""
    log: bool = False

    @property
    def alt(self) -> str:
        """The figure in words: where each curve begins and ends."""
        ends = "; ".join(
            f"{line.label}: {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in self.lines if line.ys
        )
        return f"{self.title} ({self.x_label}, {self.y_label}): {ends}"


@dataclass(frozen=True)
class Panels:
    """Plots of one kind in a grid, with one legend."""

    name: str
    title: str
    plots: tuple[Lines, ...]
    caption: str = ""
    columns: int = 3

    @property
    def alt(self) -> str:
        """The figure in words."""
        return f"{self.title}: " + "; ".join(plot.title for plot in self.plots)


@dataclass(frozen=True)
class Picture:
    """A small picture of a mask, one pixel a weight, or of densities.

    Attributes
    ----------
    alt : str
        The picture in words.
    values : ndarray of float32, (height, width)
        0 (faint) to 1 (full colour); NaN where nothing is drawn.
    """

    title: str
    alt: str
    values: Values
    series: str

    def __post_init__(self) -> None:
        _check_series(self.series)


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side (``wide``: one below the other), with a scale from 0 to 1 if it has a name."""

    name: str
    title: str
    pictures: tuple[Picture, ...]
    caption: str = ""
    wide: bool = False
    scale: str = ""

    @property
    def alt(self) -> str:
        """The figure in words."""
        return f"{self.title}: " + "; ".join(picture.alt for picture in self.pictures)


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown on demand."""

    title: str
    blocks: tuple[Block, ...]


Figure = Bars | Scatter | Lines | Panels | Pictures
Block = Cards | Ledger | Text | Table | Figure | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes
    ----------
    title : str
        Names the run.
    headline : str
        The result in one sentence.
    lede : str
        What was run, in a line or two.
    summary : tuple of Block
        What stands above the first section; also what the terminal prints.
    """

    title: str
    headline: str
    lede: str
    summary: tuple[Block, ...]
    sections: tuple[Section, ...] = field(default=())

    def figures(self) -> Iterator[Figure]:
        """All figures, in order, those in folds included."""

        def walk(blocks: tuple[Block, ...]) -> Iterator[Figure]:
            for block in blocks:
                if isinstance(block, Fold):
                    yield from walk(block.blocks)
                elif isinstance(block, Figure):
                    yield block

        yield from walk(self.summary)
        for section in self.sections:
            yield from walk(section.blocks)


R = TypeVar("R")
Builder = Callable[[R], Document]


@dataclass(frozen=True)
class Report:
    """How a kind of results becomes a document.

    Attributes
    ----------
    record : type
        The dataclass that its results.json holds.
    partial : bool
        Whether the file has more in it than the record.
    build : callable
    """

    record: type[Any]
    partial: bool
    build: Builder[Any]


REPORTS: Registry[Report] = Registry("kind of run")
"""By the ``kind`` entry of results.json."""


def report(kind: str, record: type[R], partial: bool = False) -> Callable[[Builder[R]], Builder[R]]:
    """A decorator for the function that makes the document of a record, see `Report`."""

    def add(build: Builder[R]) -> Builder[R]:
        REPORTS.register(kind)(Report(record, partial, build))
        return build

    return add
