"""``sparseflow inspect --data``: the feature maps of a model on real data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow.cli import output
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.core.codec import encode

if TYPE_CHECKING:
    from rich.table import Table

    from sparseflow.studies.map_results import MapResults


@dataclass(frozen=True)
class MapRequest:
    """What the user asked for.

    Attributes
    ----------
    data : str
        A file or a data set's name, as `sparseflow.cli.calibration.load_samples` reads it.
    samples : int
        At most so many.
    time : bool
        Time the kernels.
    """

    data: str
    samples: int
    time: bool


def inspect_maps(model: ModelRequest, request: MapRequest, json: Path | None) -> None:
    """Counts, writes JSON if asked to, prints the report's summary and tables."""
    from sparseflow.cli.calibration import load_samples
    from sparseflow.studies.maps import MapStudy, study_maps

    with output.progress("inspect") as say:
        loaded = load_model(model)
        imported = loaded.imported()
        data = load_samples(request.data, imported.inputs, request.samples)
        how = MapStudy(request.samples, request.time)
        results = study_maps(imported, data, (loaded.label, request.data), how, say)
    content = encode(results)
    if output.write_json(content, json):
        return
    from sparseflow.report import build_document, show

    console = output.stdout()
    show(build_document(content), console)
    console.print(map_table(results))


def map_table(results: MapResults) -> Table:
    """One row for each layer's input, and the mean."""
    columns = (
        "layer",
        "map",
        "density",
        "p10–p90",
        "zero pixels",
        "zero 4×4",
        "zero 8×8",
        "index",
        "MACs left",
    )
    drawn = output.table(f"{results.model} · {results.data}", *columns, numbers=columns[2:])
    for layer in results.layers:
        seen = layer.map
        drawn.add_row(
            output.layer_name(layer.name),
            output.dims(seen.shape),
            f"{seen.mean:.1%}",
            f"{seen.p10:.1%}–{seen.p90:.1%}",
            f"{1 - seen.pixels:.1%}",
            f"{1 - seen.tiles:.1%}",
            f"{1 - seen.wide_tiles:.1%}",
            output.size(layer.index_bytes),
            f"{layer.macs('both') / max(layer.macs_dense, 1):.1%}",
        )
    drawn.add_section()
    left = f"{results.macs('both') / max(results.macs('dense'), 1):.1%}"
    drawn.add_row("all computed maps", "", f"{results.mean_density:.1%}", "", "", "", "", "", left)
    return drawn
