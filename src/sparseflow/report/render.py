"""From the folder of a run to its report: HTML, Markdown and the figures as PNG and SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparseflow.core.files import atomic_write, write_json
from sparseflow.errors import SparseflowError
from sparseflow.report import kinds as kinds  # registers the builders
from sparseflow.report.document import REPORTS, Document
from sparseflow.report.html import to_html
from sparseflow.report.images import to_png, to_svg
from sparseflow.report.markdown import to_markdown
from sparseflow.studies.results import read

RESULTS = "results.json"


def render_run(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run and return the path of its HTML file.

    Parameters
    ----------
    run_dir : path
        A folder with a ``results.json`` (or that file itself), as the commands write it.
    out : path, optional
        The HTML file to write, or a folder for it; ``run_dir`` when not given. ``report.md``, ``report.json``
        (the results, so that the report can be moved whole) and ``figures/*.png`` and ``*.svg`` go beside it.

    Raises
    ------
    SparseflowError
        If there is no results.json, is damaged or of an unknown kind, or if a needed package is missing.
    """
    data, where = read_results(run_dir)
    document = build_document(data, where)
    folder = Path(run_dir) if Path(run_dir).is_dir() else Path(run_dir).parent
    page = folder / "report.html" if out is None else Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        page = page / "report.html"
    write_document(document, page)
    if page.with_suffix(".json").resolve() != Path(where).resolve():
        write_json(page.with_suffix(".json"), data)
    return page


def read_results(run_dir: str | Path) -> tuple[dict[str, Any], str]:
    """The parsed results.json of a run, and its path for messages.

    Raises
    ------
    SparseflowError
        If it is missing or is not a JSON object.
    """
    path = Path(run_dir)
    if not path.exists():
        raise SparseflowError(
            f"report: {path}: no such file or folder; give the folder of a run, one with a {RESULTS}"
        )
    if path.is_dir():
        path = path / RESULTS
        if not path.is_file():
            raise SparseflowError(
                f"report: {path.parent} holds no {RESULTS}: the run has not ended; run it again to finish it"
            )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SparseflowError(
            f"report: {path} is not readable JSON ({error}); run again to write it anew"
        ) from error
    if not isinstance(data, dict):
        raise SparseflowError(
            f"report: {path} holds a {type(data).__name__}, not the object a run writes; run again"
        )
    return data, str(path)


def build_document(data: dict[str, Any], where: str = RESULTS) -> Document:
    """The document of parsed results, by their ``kind``.

    Raises
    ------
    SparseflowError
        If the kind is missing or unknown, or the results do not fit it.
    """
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in REPORTS:
        raise SparseflowError(f"report: {where}: kind is {kind!r}; known: {', '.join(sorted(REPORTS))}")
    found = REPORTS[kind]
    return found.build(read(found.record, data, where, found.partial))


def write_document(document: Document, page: Path) -> None:
    """Write the HTML page, and beside it the Markdown and the figures; each file whole or not at all."""
    html = to_html(document)
    names = [figure.name for figure in document.figures()]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SparseflowError(f"report {document.title!r}: two figures are named {', '.join(sorted(twice))}")
    figures = page.parent / "figures"
    for figure in document.figures():
        atomic_write(figures / f"{figure.name}.png", to_png(figure))
        atomic_write(figures / f"{figure.name}.svg", to_svg(figure))
    atomic_write(page.with_suffix(".md"), to_markdown(document, figures.name))
    atomic_write(page, html)
