"""The feature maps of a network on real data: profile, work that is left, and the time of each kind of kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from sparseflow.core.map_profile import MapProfile
from sparseflow.engine.build import Build, build
from sparseflow.engine.calibrate import batches, profile_maps
from sparseflow.engine.frontends.importer import Imported
from sparseflow.engine.measure.layer_work import fastest_by_zeros, layer_work
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import resolve
from sparseflow.studies.map_results import MapLayer, MapResults

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MapStudy:
    """How maps are looked at.

    Attributes
    ----------
    samples : int
        At most so many of the data.
    measure : bool
        Time each layer's kernels of each kind, here.
    threads : int
        Of a measured call.
    """

    samples: int = 256
    measure: bool = False
    threads: int = 1


def study_maps(
    imported: Imported,
    data: Sequence[Array],
    label: tuple[str, str],
    how: MapStudy,
    say: Any = lambda _text: None,
) -> MapResults:
    """Densities of all maps of a model over ``data``.

    Parameters
    ----------
    imported : Imported
    data : sequence of array
        For each input of the model an array of samples, (count, …).
    label : (str, str)
        What model and data are called.
    how : MapStudy
    say : callable
        Told what is being done.

    Raises
    ------
    InputError
        If the data do not fit the model.
    """
    shapes = [spec.shape for spec in imported.inputs]
    settings = Build(resolve("native"), how.threads, measure=how.measure, progress=say)
    profile = profile_maps(imported, batches(data, shapes, how.samples), settings)
    times = _times(imported, profile, settings) if how.measure else {}
    work = layer_work(imported)
    layers = tuple(
        MapLayer(w.name, w.weight_shape, w.weight_density, w.macs, density, times.get(w.name, {}))
        for w, density in zip(work, profile.layers, strict=True)
    )
    machine = machine_name() if how.measure else ""
    images = max(layer.map.images for layer in layers)
    return MapResults(*label, images, layers, how.threads, machine)


def _times(imported: Imported, profile: MapProfile, settings: Build) -> dict[str, dict[str, float]]:
    plan = build(imported, settings, profile).plan
    return {layer.name: fastest_by_zeros(layer) for layer in plan.layers}
