"""The densities of feature maps: made visible for calibration, and written into the layers' workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.map_profile import MapProfile
from sparseflow.errors import CompileError
from sparseflow.ops.expressions import shape_of
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.ops import LayerAttrs, is_layer, layer_call

Expr = Any


@dataclass(frozen=True)
class MapPlace:
    """Where a map is to be had: result number ``output``, or the module's own input ``parameter``."""

    output: int | None
    parameter: int = -1

    def of(self, results: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """The map, among the results and inputs of one call."""
        return inputs[self.parameter] if self.output is None else results[self.output]


@dataclass(frozen=True)
class ExposedLayer:
    """Where a layer's maps are to be had.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of its input.
    call : relax.Call
        The layer.
    source : MapPlace
        Its input.
    result, residual : MapPlace or None
        What it writes and what it adds, where these are exposed too.
    """

    name: str
    shape: tuple[int, ...]
    call: Expr
    source: MapPlace
    result: MapPlace | None = None
    residual: MapPlace | None = None


@dataclass(frozen=True)
class ExposedMaps:
    """A module that returns the maps of its layers.

    Attributes
    ----------
    mod : tvm.IRModule
    layers : tuple of ExposedLayer
        Every layer with weights, in order.
    types : tuple of (tuple of int, str)
        Shape and data type of the results.
    """

    mod: tvm.IRModule
    layers: tuple[ExposedLayer, ...]
    types: tuple[tuple[tuple[int, ...], str], ...]


def expose_maps(mod: tvm.IRModule, all_maps: bool = False) -> ExposedMaps:
    """``mod`` with its layers' inputs for results, each once; its own inputs are not among them.

    With ``all_maps`` the layers' results and residuals too. Where no map is computed, the module stays as it is and
    there are no ``types``.
    """
    graph = Graph(mod)
    parameters = list(graph.function.params)
    found: list[Expr] = []
    layers = []

    def place(expr: Expr) -> MapPlace:
        x = graph.resolve(expr)
        if x in parameters:
            return MapPlace(None, parameters.index(x))
        if x not in found:
            found.append(x)
        return MapPlace(found.index(x))

    for binding in graph.bindings:
        if not is_layer(binding.value):
            continue
        x, residual = binding.value.args[0], list(binding.value.args[3].fields)[:1]
        name = LayerAttrs.of(binding.value).name
        more = (place(binding.var), place(residual[0]) if residual else None) if all_maps else ()
        layers.append(ExposedLayer(name, shape_of(graph.resolve(x)), binding.value, place(x), *more))
    if not found:
        return ExposedMaps(mod, tuple(layers), ())
    rebuild = Rebuild(mod)
    rebuild.graph.output = relax.Tuple(found) if len(found) > 1 else found[0]
    exposed = rebuild.run(lambda _rebuild, _var, _value: None)
    exposed = relax.transform.DeadCodeElimination()(exposed)
    return ExposedMaps(exposed, tuple(layers), tuple((shape_of(x), str(x.ty.dtype)) for x in found))


@tvm.transform.module_pass(opt_level=0, name="sparseflow.WriteDensities")
class WriteDensities:
    """Writes the calibrated density of each layer's input into its workload.

    Parameters
    ----------
    profile : MapProfile
        Of the same model: one record for each layer, in order.
    """

    def __init__(self, profile: MapProfile) -> None:
        self.profile = profile

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class.

        Raises
        ------
        CompileError
            If the profile is another model's.
        """
        layers = [b.value for b in Graph(mod).bindings if is_layer(b.value)]
        names = [LayerAttrs.of(value).name for value in layers]
        known = [layer.name for layer in self.profile.layers]
        if names != known:
            raise CompileError(
                f"calibration: the profile has {len(known)} layers ({', '.join(known[:3])}, …), the model {len(names)} "
                f"({', '.join(names[:3])}, …); profile this model"
            )
        remaining = iter(self.profile.layers)

        def visit(rebuild: Rebuild, _var: Expr, value: Expr) -> Any:
            if not is_layer(value):
                return None
            attrs = LayerAttrs.of(value)
            workload = replace(attrs.workload, map_density=next(remaining).mean)
            return layer_call(attrs.with_(workload=workload), *(rebuild.old(a) for a in value.args))

        return Rebuild(mod).run(visit)
