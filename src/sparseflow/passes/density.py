"""The densities of feature maps: made visible for calibration, and written into the layers' workloads."""

from __future__ import annotations

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
class ExposedLayer:
    """Where a layer's input is to be had: result number ``output``, or the module's own input ``parameter``."""

    name: str
    shape: tuple[int, ...]
    output: int | None
    parameter: int


@dataclass(frozen=True)
class ExposedMaps:
    """A module that returns the inputs of its layers.

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


def expose_maps(mod: tvm.IRModule) -> ExposedMaps:
    """``mod`` with its layers' inputs for results, each once; its own inputs are not among them.

    Where no layer reads a computed map, the module stays as it is and there are no ``types``.
    """
    graph = Graph(mod)
    parameters = list(graph.function.params)
    found: list[Expr] = []
    layers = []
    for binding in graph.bindings:
        if not is_layer(binding.value):
            continue
        x = graph.resolve(binding.value.args[0])
        direct = x in parameters
        if not direct and x not in found:
            found.append(x)
        name = LayerAttrs.of(binding.value).name
        output = None if direct else found.index(x)
        layers.append(ExposedLayer(name, shape_of(x), output, parameters.index(x) if direct else -1))
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
