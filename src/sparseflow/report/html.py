"""A document as one HTML file that fetches nothing."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup

from sparseflow.errors import SparseflowError
from sparseflow.report.document import Bars, Document
from sparseflow.report.pixels import COLOURS, data_uri
from sparseflow.report.svg import lines, scatter


def to_html(document: Document) -> str:
    """The whole page: style, pictures and plots inside it.

    Raises
    ------
    SparseflowError
        If jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise SparseflowError(
            "report: jinja2 is not installed; install it with: pip install 'sparseflow[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_packaged),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(scatter=scatter, lines=lines, data_uri=data_uri, share=_share)
    environment.globals["colours"] = {name: f"#{bytes(rgb).hex()}" for name, rgb in COLOURS.items()}
    return environment.get_template("report.html.j2").render(
        document=document, style=Markup(_packaged("style.css"))
    )


def _packaged(name: str) -> str:
    return resources.files("sparseflow.report").joinpath("templates", name).read_text(encoding="utf-8")


def _share(value: float, figure: Bars) -> str:
    """A place on the figure's scale as a percentage, for CSS; what is beyond the scale is at its end."""
    return f"{100 * min(value / figure.longest, 1.0):.2f}%"
