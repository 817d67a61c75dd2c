"""``sparseflow tune``: how long each layer takes at each structure and density, for an allocation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseflow.cli import options, output
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.errors import InputError
from sparseflow.report import words

if TYPE_CHECKING:
    from rich.table import Table

    from sparseflow.core.latency_table import LatencyTable


def command(
    model: options.ModelArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="TABLE.json", help="The table; kept layers are not timed again."
        ),
    ],
    structures: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Structures, separated by commas; the usual ones otherwise."),
    ] = None,
    densities: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Kept fractions, separated by commas: 0.5,0.25,0.1.")
    ] = None,
    include: options.IncludeOption = None,
    batch: options.BatchOption = 1,
    threads: options.ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each kernel; kernels take turns.")] = 15,
    no_measure: options.NoMeasureOption = False,
) -> None:
    """Time every layer of a dense MODEL at structures and densities, for an allocation under a latency budget.

    Stem, depthwise layers and classifier are left out unless included. The same command goes on where a stopped one
    was.

    **Examples**

        sparseflow tune runs/dense/model.pt2 -o table.json
        sparseflow tune zoo:resnet18 --structures block:4x1 --densities 0.5,0.2,0.1 -o table.json
    """
    from sparseflow.engine.measure.layer_times import LayerTimer
    from sparseflow.engine.weights import weighted_layers
    from sparseflow.studies import tune as study

    names = options.parse_names(structures) if structures else study.STRUCTURES
    with output.progress("tune") as say:
        loaded = load_model(ModelRequest(model, batch=batch))
        imported = loaded.imported()
        timer = LayerTimer(imported, threads, not no_measure, rounds, say)
        roles = {output.layer_name(x.name): x.role for x in weighted_layers(loaded.model)}
        layers = tuple(n for n in timer.names if not roles.get(n) or roles[n] in (include or ()))
        kept = _numbers(densities) if densities else study.DENSITIES
        request = study.TuneRequest(model, names, kept, layers)
        table = study.tune(timer, loaded.inputs(imported.inputs), request, out, say)
    output.stdout().print(times_table(table))


def times_table(table: LatencyTable) -> Table:
    """One row for each layer: dense, and the fastest density of each structure."""
    structures = list(dict.fromkeys(o.structure for layer in table.layers.values() for o in layer.options))
    ms = output.milliseconds(table.network_s)
    title = f"{table.model} · {table.threads} thread(s) · dense {ms} ms\n{table.machine}"
    drawn = output.table(title, "layer", "weight", "dense ms", *structures, numbers=("dense ms",))
    for name, layer in table.layers.items():
        cells = []
        for structure in structures:
            found = [o for o in layer.options if o.structure == structure]
            best: Any = min(found, key=lambda o: o.time_s) if found else None
            cells.append(f"{output.milliseconds(best.time_s)} at {best.density:g}" if best else "–")
        drawn.add_row(name, words.shape(layer.shape), output.milliseconds(layer.dense.time_s), *cells)
    return drawn


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in options.parse_names(text))
    except ValueError as error:
        raise InputError(f"--densities {text}: not numbers; write them as 0.5,0.25,0.1") from error
