"""One-shot magnitude pruning of a whole model: what ``--sparsify`` does, and the record of what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.core import SparsifySpec
from sparseflow.core.roles import ROLES
from sparseflow.engine.weights import WeightedLayer, weighted_layers
from sparseflow.errors import StructureError


@dataclass(frozen=True)
class SparsifiedLayer:
    """What became of one layer.

    Attributes
    ----------
    name, op : str
    shape : tuple of int
        OIHW or (out, in).
    pruned : bool
    density : float
        Kept fraction after pruning.
    reason : str
        Why it was left as it was; empty if it was pruned.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    pruned: bool
    density: float
    reason: str = ""


@dataclass(frozen=True)
class Sparsified:
    """What was pruned and what was left, layer by layer."""

    spec: SparsifySpec
    layers: tuple[SparsifiedLayer, ...]

    @property
    def label(self) -> str:
        """The specification and how its weights were chosen, for every output that shows a result of it."""
        return f"{self.spec.text} (one-shot magnitude, not retrained)"

    @property
    def pruned(self) -> tuple[SparsifiedLayer, ...]:
        """The layers that were pruned."""
        return tuple(layer for layer in self.layers if layer.pruned)

    @property
    def density(self) -> float:
        """Kept fraction of the weights of all convolutions and linear layers, dense ones included."""
        sizes = [float(np.prod(layer.shape)) for layer in self.layers]
        kept = sum(size * layer.density for size, layer in zip(sizes, self.layers, strict=True))
        return kept / sum(sizes) if sizes else 1.0


def sparsify(model: Any, spec: SparsifySpec, include: Sequence[str] = ()) -> Sparsified:
    """The record of pruning every eligible layer of ``model``, in place, to the smallest magnitudes.

    Stem, depthwise layers and classifier stay dense unless ``include`` names their role
    (`sparseflow.core.roles.roles_of`).

    Parameters
    ----------
    model : torch.nn.Module, torch.export.ExportedProgram or onnx.ModelProto
        Its weights are overwritten.
    spec : SparsifySpec
        Structure and density, as `parse_sparsify` reads them.
    include : sequence of str
        Of ``stem``, ``depthwise``, ``classifier``.

    Raises
    ------
    StructureError
        If the structure fits no eligible layer, or ``include`` names an unknown role.
    """
    for role in include:
        if role not in ROLES:
            raise StructureError(f"include: unknown role {role!r}; allowed: {', '.join(ROLES)}")
    records = tuple(_sparsify_layer(layer, spec, include) for layer in weighted_layers(model))
    if not any(record.pruned for record in records):
        reasons = list(dict.fromkeys(record.reason for record in records))
        why = "; ".join(reasons[:3]) if reasons else "the model has no convolution and no linear layer"
        raise StructureError(f"sparsify {spec.text}: fits no layer of the model: {why}")
    return Sparsified(spec, records)


def _sparsify_layer(layer: WeightedLayer, spec: SparsifySpec, include: Sequence[str]) -> SparsifiedLayer:
    shape = tuple(int(n) for n in layer.weight.shape)
    density = float(np.count_nonzero(layer.weight)) / layer.weight.size
    if layer.role and layer.role not in include:
        reason = f"{layer.role} stays dense unless included"
        return SparsifiedLayer(layer.name, layer.op, shape, False, density, reason)
    try:
        mask = spec.structure.mask(np.abs(layer.weight), spec.density)
    except StructureError as error:
        return SparsifiedLayer(layer.name, layer.op, shape, False, density, str(error))
    pruned = np.where(mask.keep, layer.weight, np.zeros((), layer.weight.dtype))
    layer.write(pruned)
    density = float(np.count_nonzero(pruned)) / pruned.size
    return SparsifiedLayer(layer.name, layer.op, shape, True, density)
