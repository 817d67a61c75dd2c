"""What a sparsity training leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from sparseflow.core.mask import Mask
from sparseflow.train.activations import FATReLU, map_densities
from sparseflow.train.rules import layers_of, weight_of


@dataclass(frozen=True)
class LayerSparsity:
    """One layer with weights.

    Parameters
    ----------
    name : str
    kind : str
        "conv" or "linear".
    shape : tuple of int
        Of the weight: OIHW or (out, in).
    structure : str
        As `parse_structure` reads it; "dense" where nothing was pruned.
    kept : int
        Weights that are not removed.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    structure: str
    kept: int

    @property
    def total(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Removed fraction."""
        return 1 - self.kept / self.total


@dataclass(frozen=True)
class MapSparsity:
    """One activation's map.

    Parameters
    ----------
    name : str
        Of the activation's module.
    density : float
        Mean fraction of non-zeros, over test samples.
    size : int
        Elements of one sample's map.
    threshold : float or None
        Of a `FATReLU`.
    """

    name: str
    density: float
    size: int
    threshold: float | None


@dataclass(frozen=True)
class PruneResult:
    """The outcome of a recipe.

    Parameters
    ----------
    recipe : str
        Its name.
    dense_accuracy, pruned_accuracy : float
        On the test data after the last epoch, in 0..1.
    layers : tuple of LayerSparsity
    maps : tuple of MapSparsity
        Of the activations that a stage has put in; empty if none has.
    history : dict
        For each stage its epochs' ``loss``, ``seconds`` and, where evaluated, ``accuracy``.
    dense_path, model_path, exported_path, results_path : str
        State dictionaries of the dense and the pruned model, the exported pruned model (``.pt2``), this as
        JSON.
    """

    recipe: str
    dense_accuracy: float
    pruned_accuracy: float
    layers: tuple[LayerSparsity, ...]
    maps: tuple[MapSparsity, ...]
    history: dict[str, tuple[dict[str, float], ...]]
    dense_path: str
    model_path: str
    exported_path: str
    results_path: str

    @property
    def conv_compression(self) -> float:
        """All convolution weights, divided by those that are left; pruned layers and dense ones alike."""
        return self._compression("conv")

    @property
    def compression(self) -> float:
        """All weights of convolution and linear layers, divided by those that are left."""
        return self._compression("conv", "linear")

    @property
    def map_density(self) -> float | None:
        """Non-zeros of all `maps` together, divided by their elements; None without maps."""
        elements = sum(m.size for m in self.maps)
        return sum(m.density * m.size for m in self.maps) / elements if elements else None

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return sum(epoch["seconds"] for epochs in self.history.values() for epoch in epochs)

    def _compression(self, *kinds: str) -> float:
        layers = [layer for layer in self.layers if layer.kind in kinds]
        return sum(x.total for x in layers) / max(sum(x.kept for x in layers), 1)


def map_table(
    model: nn.Module, activations: Mapping[str, nn.Module], batches: Iterable[Any]
) -> tuple[MapSparsity, ...]:
    """The maps of ``activations`` over ``batches`` of (x, labels)."""
    if not activations:
        return ()
    found = map_densities(model, activations, batches)
    return tuple(
        MapSparsity(
            name,
            found[name].density,
            found[name].size,
            float(m.threshold) if isinstance(m, FATReLU) else None,
        )
        for name, m in activations.items()
    )


def layer_table(model: nn.Module, masks: dict[str, Mask]) -> tuple[LayerSparsity, ...]:
    """Every layer with weights; those without a mask are dense."""
    rows = []
    for name, module in layers_of(model).items():
        shape = tuple(weight_of(model, name).shape)
        mask = masks.get(name)
        kept = prod(shape) if mask is None else int(mask.keep.sum())
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        rows.append(LayerSparsity(name, kind, shape, "dense" if mask is None else str(mask.structure), kept))
    return tuple(rows)
