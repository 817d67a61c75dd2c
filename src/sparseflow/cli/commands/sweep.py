"""``sparseflow sweep``: method x structure x sparsity → a table and the plot of accuracy against measured latency."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli import options, output
from sparseflow.core.codec import encode
from sparseflow.errors import RecipeError, needs


class Only(StrEnum):
    """Halves of a sweep that can be asked for alone."""

    TRAIN = "train"
    MEASURE = "measure"


def command(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="The sweep to run.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for all cells and the results.")
    ],
    reuse: options.ReuseOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cells trained at a time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train on a Ray cluster; auto: the one of this machine."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no epoch after so many; the same command goes on.")
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Only train, or only measure what is trained.")] = None,
    threads: options.ThreadsOption = 1,
    no_measure: options.NoMeasureOption = False,
    json: options.JsonOption = None,
) -> None:
    """Train every cell of a sweep from one dense network, compile each, and time all engines in turns.

    Cells are independent. A stopped sweep goes on with the same command; finished cells are kept.

    **Examples**

        sparseflow sweep recipes/sweeps/mnist5k.toml -o runs/sweep --jobs 2
        sparseflow sweep recipes/sweeps/cifar10.toml -o runs/cifar10-sweep --minutes 60
        sparseflow sweep recipes/sweeps/cifar10.toml -o /shared/sweep --ray auto --jobs 8
        sparseflow report runs/sweep
    """
    with needs("train", str(sweep), RecipeError):
        from sparseflow.cli.training import training_progress
        from sparseflow.studies.sweep import SweepOptions, run_sweep
        from sparseflow.studies.sweep_plan import load_sweep
    how = SweepOptions(
        jobs=jobs,
        ray=ray,
        minutes=minutes,
        train=only is not Only.MEASURE,
        measure=only is not Only.TRAIN,
        threads=threads,
        kernels_measured=not no_measure,
    )
    with training_progress() as progress:
        result = run_sweep(load_sweep(sweep), out, reuse=reuse or (), options=how, progress=progress)
    output.show_results(encode(result), str(out), f"report: sparseflow report {out}", json)
