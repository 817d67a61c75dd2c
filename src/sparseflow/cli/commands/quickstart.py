"""``sparseflow quickstart``: the whole flow on embedded data, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli import options, output
from sparseflow.errors import DataError, needs


def command(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for networks, engines and the report.")
    ] = Path("runs/quickstart"),
    threads: options.ThreadsOption = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and batches.")] = 0,
    no_measure: options.NoMeasureOption = False,
    json: options.JsonOption = None,
) -> None:
    """Train, prune, compile and measure a small CNN on real digits; write one HTML report.

    Embedded data, nothing to download: under 8 minutes on 2 cores. The same command goes on where a stopped
    one was.

    **Examples**

        sparseflow quickstart
        sparseflow quickstart --out runs/mine --seed 1
    """
    with needs("train,report,peers", "quickstart", DataError):
        from sparseflow.cli.training import training_progress
        from sparseflow.studies.quickstart import QuickstartSettings, run
    from sparseflow.report import read_results, render_run

    settings = QuickstartSettings(measure=not no_measure)
    with training_progress() as progress:
        run(out, threads=threads, seed=seed, settings=settings, progress=progress)
    page = render_run(out)
    output.show_results(*read_results(out), f"report: {page}", json)
