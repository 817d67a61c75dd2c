"""The work of each layer with weights, and what leaving out zeros makes of its time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm

from sparseflow.core.plan import LayerPlan
from sparseflow.engine.build import inside_tvm
from sparseflow.engine.frontends.importer import Imported
from sparseflow.engine.target.targets import host_target
from sparseflow.kernels.template import TEMPLATES
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer, weight_of
from sparseflow.passes.propagate import Propagate


@dataclass(frozen=True)
class LayerWork:
    """One layer after propagation, batch norm folded.

    Attributes
    ----------
    name : str
    weight_shape : tuple of int
        OIHW, or (out, in).
    weight_density : float
        Fraction of the weights that is not zero.
    macs : int
        Multiply-accumulates of one call with all weights, zeros included.
    """

    name: str
    weight_shape: tuple[int, ...]
    weight_density: float
    macs: int


def layer_work(imported: Imported) -> tuple[LayerWork, ...]:
    """Every layer with weights, in the order in which `sparseflow.engine.calibrate.profile_maps` has them.

    Raises
    ------
    CompileError
        If the model's graph cannot be read.
    """
    with inside_tvm("reading layers"):
        mod = tvm.transform.Sequential([Canonicalise(host_target()), Propagate()])(imported.mod)
        found = []
        for binding in Graph(mod).bindings:
            if is_layer(binding.value):
                attrs, weight = LayerAttrs.of(binding.value), weight_of(binding.value)
                density = float(np.count_nonzero(weight) / max(weight.size, 1))
                found.append(LayerWork(attrs.name, weight.shape, density, attrs.workload.macs))
    return tuple(found)


def fastest_by_zeros(layer: LayerPlan) -> dict[str, float]:
    """Seconds of the fastest measured kernel of each kind: ``dense``, ``weights``, ``maps``, ``both``.

    The kind says whose zeros it leaves out. Kinds without a measured kernel are not there.
    """
    found: dict[str, float] = {}
    for candidate in layer.candidates:
        template = TEMPLATES[candidate.template]
        weights, maps = template.format != "dense", template.sparse_input
        kind = ("both" if maps else "weights") if weights else ("maps" if maps else "dense")
        if candidate.measured:
            found[kind] = min(candidate.time_s, found.get(kind, candidate.time_s))
    return found
