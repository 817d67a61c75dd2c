"""Figures of a document as PNG, as SVG, and as SVG inside of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from sparseflow.errors import SparseflowError, needs
from sparseflow.report.colours import PAGE, VARIABLES
from sparseflow.report.document import Figure, Scatter

DPI = 160
NO_DATES: Mapping[str, Mapping[str, None]] = {
    "png": {"Software": None},
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
}
"""Left out of the files, so that equal results give equal files."""


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white.

    Raises
    ------
    SparseflowError
        If matplotlib is not installed.
    """
    return _saved(figure, "png", True, {"image.interpolation": "auto", "savefig.facecolor": PAGE})


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file that describes itself to those who do not see it.

    Raises
    ------
    SparseflowError
        If matplotlib is not installed.
    """
    return _svg(figure, titled=True).replace("<svg ", f"<svg {_described(figure)} ", 1).encode()


def inline_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without its title, its colours the variables of the page.

    Raises
    ------
    SparseflowError
        If matplotlib is not installed.
    """
    text = _svg(figure, titled=False)
    text = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*(viewBox="[^"]+")[^>]*>', r"<svg \1 {}>", text[text.index("<svg") :], count=1)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{figure.name}-", text.replace("xlink:href", "href"))
    for name, colour in VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name})", text)
    return text.replace("{}", _described(figure), 1).strip()


def _described(figure: Figure) -> str:
    return f'role="img" aria-label="{escape(figure.alt)}"'


def _svg(figure: Figure, titled: bool) -> str:
    style = {"image.interpolation": "none", "savefig.facecolor": "none", "svg.hashsalt": figure.name}
    text = _saved(figure, "svg", titled, style).decode("utf-8")
    if isinstance(figure, Scatter):  # shown by browsers where the pointer rests
        for i, point in enumerate(figure.points):
            text = text.replace(
                f'<g id="point-{i}">', f'<g id="point-{i}"><title>{escape(point.label)}</title>'
            )
    return text


def _saved(figure: Figure, kind: str, titled: bool, how: dict[str, Any]) -> bytes:
    with needs("report", "report", SparseflowError):
        from matplotlib import style

        from sparseflow.report import draw
    buffer = io.BytesIO()
    with style.context(["default", {**draw.STYLE, **how}]):
        drawn = draw.canvas(figure, titled)
        drawn.savefig(buffer, format=kind, dpi=DPI, metadata=dict(NO_DATES[kind]))
    return buffer.getvalue()
