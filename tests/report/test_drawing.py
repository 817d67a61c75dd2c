"""Figures as SVG and PNG from one drawing: everything is in them, readable, and the same each time."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from sparseflow.errors import SparseflowError
from sparseflow.report import masks
from sparseflow.report.colours import COLOURS, VARIABLES
from sparseflow.report.document import (
    SERIES,
    Bar,
    Bars,
    Cell,
    Column,
    Figure,
    Line,
    Lines,
    Panels,
    Picture,
    Pictures,
    Point,
    Scatter,
    Table,
)
from sparseflow.report.images import inline_svg, to_png, to_svg

CURVE = Line("curve", "s1", (0.1, 1.0), (10.0, 1.0))
MARK = Line("mark", "s2", (0.5,), (2.0,))
ROOF = Line("roof", "neutral", (0.1, 1.0), (1.0, 1.0), dashed=True)
LOG = tuple(Lines(f"p{i}", f"plot {i}", "work", "speed", (CURVE, MARK, ROOF), log=True) for i in range(4))
GRID = np.array([[0, 1, np.nan], [1, 0.5, 0]], dtype=np.float32)
FIGURES: tuple[Figure, ...] = (
    Bars("bars", "Latency", "ms", (Bar("one", (("s1", 2.0), ("index", 1.0)), "3 ms", 2.5, 3.5),), (("s1", "values"),)),
    Scatter("dots", "Accuracy", "latency, ms", "accuracy, %", (Point("a", 1.0, 2.0, 0.5, "s1", 0.9, 1.2),)),
    Lines("training", "Training", "epoch", "accuracy, %", (Line("first", "s3", (1.0, 2.0), (3.0, 4.0)),)),
    Panels("panels", "Rooflines", LOG),
    Pictures("places", "Places", (Picture("left", "left is dense", GRID, "s4"),), scale="density"),
    Pictures("strips", "Strips", (Picture("all", "a strip", GRID, "s1"),), wide=True),
)  # fmt: skip
WORDS = {
    "bars": {"one", "3 ms", "ms", "values"},
    "dots": {"a", "latency, ms", "accuracy, %"},
    "training": {"first", "epoch", "accuracy, %"},
    "panels": {"plot 0", "plot 3", "work", "speed", "curve", "mark", "roof"},
    "places": {"left", "density"},
    "strips": {"all"},
}


def texts(svg: bytes | str) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_both_formats_show_all_words_and_are_the_same_each_time(figure: Figure) -> None:
    svg, png = to_svg(figure), to_png(figure)
    assert {*WORDS[figure.name], figure.title} <= set(texts(svg))
    assert (to_svg(figure), to_png(figure)) == (svg, png)
    assert png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", figure.alt)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_inside_of_a_page_colours_are_the_page_s_and_names_its_own(figure: Figure) -> None:
    svg = inline_svg(figure)
    assert WORDS[figure.name] <= set(texts(svg))
    assert figure.title not in texts(svg)
    assert not [colour for colour in VARIABLES.values() if re.search(f"(fill|stroke): {colour}", svg)]
    assert "var(--ink)" in svg
    names = re.findall(r' id="([^"]+)"', svg)
    assert len(names) == len(set(names))
    assert all(name.startswith(f"{figure.name}-") for name in names)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert set(used) <= set(names)


def test_drawing_changes_no_settings_of_matplotlib() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9.0}):
        svg = to_svg(FIGURES[2])
    assert to_svg(FIGURES[2]) == svg
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys; from sparseflow.report import images, document as d; "
        "images.to_png(d.Bars('b', 't', 'ms', ())); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_summary_on_the_terminal_needs_neither_jinja2_nor_matplotlib() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jinja2', 'markupsafe', 'matplotlib'))); "
        "from sparseflow.report import build_document, show; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fine"


def test_names_stay_inside_and_cover_neither_points_nor_each_other() -> None:
    from matplotlib import style
    from matplotlib.transforms import Bbox

    from sparseflow.report import draw

    rng = np.random.default_rng(3)
    points = tuple(
        Point(f"network number {i}", x, y, 1.0, "s1") for i, (x, y) in enumerate(rng.uniform(1, 5, (7, 2)))
    )
    with style.context(["default", draw.STYLE]):
        drawn = draw.canvas(Scatter("s", "t", "x", "y", points), titled=True)
        drawn.draw_without_rendering()
        (axes,) = drawn.axes
        frame = axes.get_window_extent()
        names = [t for t in axes.texts if t.get_text()]
        boxes = [t.get_window_extent() for t in names]
        centres = [axes.transData.transform((p.x, p.y)) for p in points]
    assert [t.get_text() for t in names] == [p.label for p in points]
    dots = [Bbox.from_extents(*(c - 8), *(c + 8)) for c in centres]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
        assert not [dot for dot in dots if box.overlaps(dot)]
        assert not [other for other in boxes[:i] if box.overlaps(other)]


def test_a_picture_has_the_colours_of_its_values() -> None:
    from PIL import Image

    picture = Picture("left", "left", GRID, "s1")
    svg = to_svg(Pictures("p", "t", (picture,)))
    data = re.search(r'href="data:image/png;base64,([^"]+)"', svg.decode())
    assert data is not None
    import base64

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGBA"))
    assert pixels.shape == (2, 3, 4)  # one pixel a value: the viewer scales
    assert pixels[0, 2, 3] == 0
    kept = "#" + "".join(f"{v:02x}" for v in pixels[0, 1, :3])
    assert kept == COLOURS["s1"]
    assert pixels[0, 0, 3] < pixels[1, 1, 3] < pixels[0, 1, 3] == 255


def test_kernels_are_cells_with_a_gap_between() -> None:
    keep = np.zeros((3, 2, 3, 3), dtype=np.bool_)
    keep[1, 1, 0, 2] = True
    grid = masks.kernels(keep)
    assert grid.shape == (11, 7)
    assert np.isnan(grid[3]).all()
    assert np.isnan(grid[:, 3]).all()
    assert np.argwhere(grid == 1).tolist() == [[4, 6]]


def test_matrix_is_filters_by_columns() -> None:
    keep = np.random.default_rng(0).random((5, 3, 2, 2)) < 0.5
    np.testing.assert_array_equal(masks.matrix(keep) == 1, keep.reshape(5, 12))


def test_labels_are_shown_as_they_are() -> None:
    points = (Point("<b>& $x^2$", 1.0, 2.0, 0.5, "s1", 0.9, 1.2), Point("b", 3.0, 2.5, 1.0, "peer"))
    svg = inline_svg(Scatter("plot", "title", "x", "y", points))
    assert "<b>" not in svg
    assert "<b>& $x^2$" in texts(svg)
    assert svg.count("<title>") == 2  # what a browser shows where the pointer rests


def test_little_can_be_drawn_too() -> None:
    for figure in (
        Scatter("plot", "t", "x", "y", (Point("a", 0.0, 0.0, 0.0, "s1"),)),
        Scatter("plot", "t", "x", "y", ()),
        Bars("bars", "t", "ms", ()),
        Lines("lines", "t", "x", "y", ()),
        Panels("panels", "t", LOG[:1]),
        Pictures("pictures", "t", ()),
    ):
        assert to_png(figure).startswith(b"\x89PNG")


def test_wrong_rows_and_colours_are_refused() -> None:
    with pytest.raises(SparseflowError, match="2 cells, not 1"):
        Table("t", (Column("a"),), ((Cell("1"), Cell("2")),))
    with pytest.raises(SparseflowError, match="unknown colour role 'pink'"):
        Bar("a", (("pink", 1.0),), "1")
    assert set(SERIES) == set(COLOURS)


def test_panels_share_axes_and_hold_every_curve() -> None:
    from matplotlib import style

    from sparseflow.report import draw

    panels = Panels("panels", "Title", (*LOG[:3], replace(LOG[3], lines=(CURVE,))))
    assert panels.alt == "Title: plot 0; plot 1; plot 2; plot 3"
    with style.context(["default", draw.STYLE]):
        drawn = draw.canvas(panels, titled=False)
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert [len(axes.lines) for axes in shown] == [3, 3, 3, 1]
    assert {axes.get_ylim() for axes in shown} == {shown[0].get_ylim()}
    assert [axes.lines[2].get_linestyle() for axes in shown[:3]] == ["--"] * 3
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["curve", "mark", "roof"]
