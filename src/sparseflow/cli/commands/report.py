"""``sparseflow report``: the results of a run → one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli import output


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or a results file such as bench's JSON.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="HTML file or folder; beside the results if not given."
        ),
    ] = None,
) -> None:
    """Render RUN as HTML, Markdown and PNG figures, and print its summary.

    **Examples**

        sparseflow report runs/quickstart
        sparseflow bench zoo:resnet50 --json resnet50.json && sparseflow report resnet50.json -o resnet50.html
    """
    from sparseflow.report import read_results, render_run

    page = render_run(run, out)
    output.show_results(*read_results(run), f"report: {page}")
