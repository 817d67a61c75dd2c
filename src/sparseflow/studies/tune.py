"""Measuring a network's latency table, layer by layer; a stopped measurement goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparseflow.core.codec import encode
from sparseflow.core.latency_table import KIND, LatencyTable
from sparseflow.engine.measure.layer_times import LayerTimer, prunings
from sparseflow.errors import SparseflowError
from sparseflow.studies.records import Records

STRUCTURES = ("unstructured", "block:4x1", "pattern:4+connectivity", "filter")
DENSITIES = (0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)


@dataclass(frozen=True)
class TuneRequest:
    """What is measured.

    Attributes
    ----------
    model : str
        Label of the network.
    structures : tuple of str
    densities : tuple of float
        Of structures whose density is free.
    layers : tuple of str
        Module names.
    """

    model: str
    structures: tuple[str, ...] = STRUCTURES
    densities: tuple[float, ...] = DENSITIES
    layers: tuple[str, ...] = ()


def tune(
    timer: LayerTimer,
    inputs: Sequence[np.ndarray[Any, Any]],
    request: TuneRequest,
    path: Path,
    say: Callable[[str], None],
) -> LatencyTable:
    """The table of ``request``, written to ``path`` after each layer; layers that the file holds are kept.

    Raises
    ------
    SparseflowError
        If the file holds a table of another request or machine.
    """
    wanted = prunings(request.structures, request.densities)
    asked = {
        "kind": KIND,
        "model": request.model,
        "machine": timer.selector.machine,
        "target": str(timer.target),
        "threads": timer.threads,
        "structures": list(request.structures),
        "densities": list(request.densities),
    }
    head = _earlier(path, asked)
    if head is None:
        say("the whole dense network")
        network_s, nbytes = timer.network(inputs)
        head = {**asked, "network_s": network_s, "network_nbytes": nbytes}
    records = Records(path, head, resume=path.is_file())
    records.write()

    def case(name: str) -> dict[str, Any]:
        return dict(encode(timer.times(name, wanted)))

    failed = records.run([(name, partial(case, name)) for name in request.layers], say)
    if failed:
        raise SparseflowError(f"{path}: {failed} layers could not be measured; see above")
    return LatencyTable.read(path)


def _earlier(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The entries beside the cases of an earlier file of the same request; None if there is no file."""
    if not path.is_file():
        return None
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SparseflowError(f"{path}: not a latency table; choose another file") from error
    for key, value in asked.items():
        if data.get(key) != value:
            raise SparseflowError(
                f"{path}: its {key} is {data.get(key)!r}, not {value!r}; choose another file or delete it"
            )
    return {key: value for key, value in data.items() if key != "cases"}
