"""A document as one HTML file that fetches nothing."""

from __future__ import annotations

from importlib import resources

from sparseflow.errors import SparseflowError, needs
from sparseflow.report.colours import COLOURS
from sparseflow.report.document import Document
from sparseflow.report.images import inline_svg


def to_html(document: Document) -> str:
    """The whole page: style, pictures and plots inside it.

    Raises
    ------
    SparseflowError
        If jinja2 or matplotlib is not installed.
    """
    with needs("report", "report", SparseflowError):
        import jinja2
        from markupsafe import Markup
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = lambda figure: Markup(inline_svg(figure))
    environment.globals["colours"] = COLOURS
    return environment.get_template("report.html.j2").render(
        document=document, style=Markup(_packaged("style.css"))
    )


def _packaged(name: str) -> str:
    return resources.files("sparseflow.report").joinpath("templates", name).read_text(encoding="utf-8")
