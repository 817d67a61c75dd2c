"""What a sparsity training leaves behind: plain records that training writes and the report reads.

Stored are counted things; ratios are properties, so that no file can contradict itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from sparseflow.core.map_ranges import MapRanges


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


def mean_density(maps: Collection[MapSparsity]) -> float:
    """Non-zeros of all maps together, divided by their elements."""
    return sum(m.density * m.size for m in maps) / max(sum(m.size for m in maps), 1)


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
    history : dict
        For each stage its epochs' ``loss``, ``seconds`` and, where evaluated, ``accuracy``.
    maps : tuple of MapSparsity
        Of the activations that a stage has put in; empty if none has.
    dense_validation, pruned_validation : float or None
        Accuracy on images held out from the training data, on which the history's accuracies are then too; None
        without such images.
    quantised : MapRanges or None
        The layers whose weights lie on levels and whose maps are rounded, also where `pruned_accuracy` was measured.
    dense_path, model_path, exported_path, results_path, quantisation_path : str
        State dictionaries of the dense and the pruned model, the exported pruned model (``.pt2``), this as
        JSON, `quantised` as JSON if there is one.
    """

    recipe: str
    dense_accuracy: float
    pruned_accuracy: float
    layers: tuple[LayerSparsity, ...]
    history: dict[str, tuple[dict[str, float], ...]]
    maps: tuple[MapSparsity, ...] = ()
    dense_validation: float | None = None
    pruned_validation: float | None = None
    quantised: MapRanges | None = None
    dense_path: str = ""
    model_path: str = ""
    exported_path: str = ""
    results_path: str = ""
    quantisation_path: str = ""

    @property
    def points_lost(self) -> float:
        """Accuracy lost, in percentage points."""
        return 100 * (self.dense_accuracy - self.pruned_accuracy)

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures pruned to, each once."""
        return tuple(dict.fromkeys(x.structure for x in self.layers if x.structure != "dense"))

    @property
    def kept(self) -> int:
        """Weights left."""
        return sum(layer.kept for layer in self.layers)

    @property
    def total(self) -> int:
        """Weights of the dense network."""
        return sum(layer.total for layer in self.layers)

    @property
    def conv_compression(self) -> float:
        """All convolution weights, divided by those that are left; pruned layers and dense ones alike."""
        layers = [layer for layer in self.layers if layer.kind == "conv"]
        return sum(x.total for x in layers) / max(sum(x.kept for x in layers), 1)

    @property
    def compression(self) -> float:
        """All weights of convolution and linear layers, divided by those that are left."""
        return self.total / max(self.kept, 1)

    @property
    def map_density(self) -> float | None:
        """Non-zeros of all `maps` together, divided by their elements; None without maps."""
        return mean_density(self.maps) if self.maps else None

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return sum(epoch.get("seconds", 0.0) for epochs in self.history.values() for epoch in epochs)
