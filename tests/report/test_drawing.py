import io

import numpy as np
import pytest

from sparseflow.errors import SparseflowError
from sparseflow.report import axes, pixels
from sparseflow.report.document import Bar, Bars, Cell, Column, Line, Lines, Panels, Point, Scatter, Table
from sparseflow.report.png import to_png
from sparseflow.report.svg import lines, scatter


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0, 402e-6), (98.1, 98.75), (5, 5), (-3, 12_000)])
def test_ticks_cover_the_range_with_even_steps(low: float, high: float) -> None:
    ticks = axes.ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_labels_cover_neither_marks_nor_each_other() -> None:
    rng = np.random.default_rng(3)
    marks = [(x, y, x + 20.0, y + 20.0) for x, y in rng.uniform(80, 500, (7, 2))]
    labels = [f"label number {i}" for i in range(7)]
    frame = (60.0, 20.0, 620.0, 560.0)
    boxes = [
        (left, middle - axes.LABEL_HEIGHT / 2, left + width, middle + axes.LABEL_HEIGHT / 2)
        for left, middle, width in axes.place_labels(labels, marks, frame)
    ]
    for i, box in enumerate(boxes):
        assert frame[0] <= box[0] <= box[2] <= frame[2]
        others = [*marks, *boxes[:i]]
        assert not [o for o in others if box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3]]


def test_png_holds_the_pixels_it_was_given() -> None:
    from matplotlib.image import imread

    wanted = np.array([[0, 1, 2], [2, 2, 0]], dtype=np.uint8)
    image = imread(io.BytesIO(pixels.png(wanted, "s1", scale=2)), format="png")
    assert image.shape == (4, 6, 4)
    np.testing.assert_array_equal(image[::2, ::2, 3] == 0, wanted == 0)
    kept = np.round(image[::2, ::2, :3] * 255).astype(int)[wanted == 2]
    assert {tuple(c) for c in kept.tolist()} == {pixels.COLOURS["s1"]}


def test_kernels_are_cells_with_a_gap_between() -> None:
    keep = np.zeros((3, 2, 3, 3), dtype=np.bool_)
    keep[1, 1, 0, 2] = True
    grid = pixels.kernels(keep)
    assert grid.shape == (11, 7)
    assert (grid[3] == pixels.GAP).all()
    assert (grid[:, 3] == pixels.GAP).all()
    assert np.argwhere(grid == pixels.KEPT).tolist() == [[4, 6]]


def test_matrix_is_filters_by_columns() -> None:
    keep = np.random.default_rng(0).random((5, 3, 2, 2)) < 0.5
    np.testing.assert_array_equal(pixels.matrix(keep) == pixels.KEPT, keep.reshape(5, 12))


def test_svg_escapes_labels_and_draws_every_point() -> None:
    points = (Point("<b>&", 1.0, 2.0, 0.5, "s1", 0.9, 1.2), Point("b", 3.0, 2.5, 1.0, "peer"))
    svg = scatter(Scatter("plot", "title", "x", "y", points))
    assert svg.count("<circle") == 2
    assert svg.count('class="whisker"') == 1
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;" in svg


def test_one_point_and_no_bars_can_be_drawn() -> None:
    assert scatter(Scatter("plot", "t", "x", "y", (Point("a", 0.0, 0.0, 0.0, "s1"),))).startswith("<svg")
    assert to_png(Bars("bars", "t", "ms", ())).startswith(b"\x89PNG")


def test_wrong_rows_and_colours_are_refused() -> None:
    with pytest.raises(SparseflowError, match="2 cells, not 1"):
        Table("t", (Column("a"),), ((Cell("1"), Cell("2")),))
    with pytest.raises(SparseflowError, match="unknown colour role 'pink'"):
        Bar("a", (("pink", 1.0),), "1")


@pytest.mark.parametrize(("low", "high"), [(0.02, 1.0), (0.3, 15.0), (1.0, 1.0), (0.04, 3.1e4), (7.0, 8.0)])
def test_logarithmic_ticks_cover_the_range(low: float, high: float) -> None:
    marks = axes.log_ticks(low, high)
    assert marks[0] <= low * (1 + 1e-9)
    assert marks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(marks) <= 11
    assert marks == sorted(marks)
    with pytest.raises(ValueError, match="positive"):
        axes.log_ticks(0.0, 1.0)


def test_panels_are_one_picture_with_one_legend() -> None:
    curve = Line("curve", "s1", (0.1, 1.0), (10.0, 1.0))
    mark = Line("mark", "s2", (0.5,), (2.0,))
    roof = Line("roof", "neutral", (0.1, 1.0), (1.0, 1.0), dashed=True)
    plots = tuple(Lines(f"p{i}", f"plot {i}", "x", "y", (curve, mark, roof), log=True) for i in range(4))
    panels = Panels("panels", "Title", plots)
    assert to_png(panels).startswith(b"\x89PNG")
    assert panels.alt == "Title: plot 0; plot 1; plot 2; plot 3"
    svg = lines(plots[0])
    assert svg.count("<polyline") == 3
    assert svg.count("stroke-dasharray") == 1
    wide = [float(p.split(",")[0]) for p in svg.split('class="s1" points="')[1].split('"')[0].split()]
    middle = float(svg.split('class="s2" cx="')[1].split('"')[0])
    share = (middle - wide[0]) / (wide[1] - wide[0])
    assert share == pytest.approx(np.log10(5), abs=0.01)
