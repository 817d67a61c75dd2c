"""``sparseflow inspect --data``: the feature maps of a model on real data."""

from __future__ import annotations

from pathlib import Path

from sparseflow.cli import output
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.core.codec import encode


def inspect_maps(model: ModelRequest, data: str, samples: int, time: bool, json: Path | None) -> None:
    """Counts, times the kernels if asked to, writes JSON if asked to, prints the report's tables.

    Parameters
    ----------
    model : ModelRequest
    data : str
        A file or a data set's name, as `sparseflow.cli.calibration.load_samples` reads it.
    samples : int
        At most so many.
    time : bool
        Time the kernels.
    json : Path, optional
    """
    from sparseflow.cli.calibration import load_samples
    from sparseflow.studies.maps import MapStudy, study_maps

    with output.progress("inspect") as say:
        loaded = load_model(model)
        imported = loaded.imported()
        arrays = load_samples(data, imported.inputs, samples)
        how = MapStudy(samples, time)
        results = study_maps(imported, arrays, (loaded.label, data), how, say)
    output.show_results(encode(results), data, "", json, whole=True)
