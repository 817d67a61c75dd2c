"""Quantising a network: which layer gets which levels, learning them in training, or rounding after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseflow.core.calibrated_ranges import RANGES
from sparseflow.core.map_ranges import MapRange, MapRanges
from sparseflow.core.roles import ROLES, roles_of
from sparseflow.errors import StructureError
from sparseflow.train.activations.hooks import MapHook
from sparseflow.train.levels import LEVELS, Levels, Uniform, fitted_steps, known_levels, on_levels
from sparseflow.train.quantise.chains import Chain, chains_of
from sparseflow.train.quantise.maps import MapLevels, first_readers, map_samples, range_of, sample_range
from sparseflow.train.quantise.post_training import correct_biases, equalise, fold_batch_norms
from sparseflow.train.quantise.weights import LearnedSteps
from sparseflow.train.rules import layers_of, weight_of
from sparseflow.train.settings import STRICT, Settings, told_in_validation
from sparseflow.train.trainer import device_of

EDGE_BITS = 8
"""Of layers of a role, uniform, where the rest has fewer or other levels."""


def _known_range(name: str) -> str:
    with told_in_validation():
        RANGES[name]
    return name


class QuantiseKeys(BaseModel):
    """Which levels weights and maps get.

    Parameters
    ----------
    bits : int
        Of a weight's code.
    levels : str
        Of `LEVELS`: "uniform" or "two-powers".
    maps : int
        Bits of an element of a map.
    ranges : str
        Of `RANGES`: where the range of a map comes from, or starts.
    samples : int
        Training samples over which maps are looked at.
    include : tuple of str
        Of "stem", "depthwise", "classifier": roles that get these levels too. Layers of the others have 8 uniform bits,
        their maps as well.
    exclude : tuple of str
        Shell wildcards over the names of layers that stay in floating point, with their maps.
    """

    model_config = STRICT
    bits: int = Field(default=8, ge=2, le=8)
    levels: Annotated[str, AfterValidator(known_levels)] = "uniform"
    maps: int = Field(default=8, ge=2, le=8)
    ranges: Annotated[str, AfterValidator(_known_range)] = "mse"
    samples: int = Field(default=512, ge=1)
    include: tuple[Literal["stem", "depthwise", "classifier"], ...] = Field(default=(), strict=False)
    exclude: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _codes(self) -> QuantiseKeys:
        with told_in_validation():
            LEVELS[self.levels](self.bits)
        return self


class LearnKeys(QuantiseKeys):
    """How levels are learned while a network is trained.

    Parameters
    ----------
    method : {"lsq"}
        Learned step sizes.
    start : {"fitted", "mean"}
        Where the steps of weights start: with the least squared error, or at ``2 mean|w| / √Q``.
    batch_norm : {"kept", "during", "before"}
        Batch norms are trained as they are; or the levels are those of the weight with its batch norm multiplied in; or
        it is folded into the weight for good, and only its shift goes on being trained.
    """

    method: Literal["lsq"] = "lsq"
    start: Literal["fitted", "mean"] = "fitted"
    batch_norm: Literal["kept", "during", "before"] = "kept"


class RoundKeys(QuantiseKeys):
    """How a trained network is rounded.

    Parameters
    ----------
    equalise : bool
        Even out the ranges of channels between layers first.
    correct_bias : bool
        Take the mean error out of the biases afterwards.
    """

    equalise: bool = True
    correct_bias: bool = True


class LearnSettings(Settings, LearnKeys):
    """`LearnKeys` in Python."""


class RoundSettings(Settings, RoundKeys):
    """`RoundKeys` in Python."""


@dataclass(frozen=True)
class LayerLevels:
    """What a layer gets.

    Parameters
    ----------
    weight : Levels
    map_bits : int
    """

    weight: Levels
    map_bits: int


def planned(model: nn.Module, keys: QuantiseKeys) -> dict[str, LayerLevels]:
    """The levels of each layer by name, in the order of their definition.

    Raises
    ------
    StructureError
        If a name to exclude matches no layer, or none is left.
    """
    layers = layers_of(model)
    for pattern in keys.exclude:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise StructureError(
                f"exclude {pattern!r}: matches none of the layers {', '.join(layers) or '(none)'}; correct its name"
            )
    shapes = [(tuple(layer.weight.shape), getattr(layer, "groups", 1)) for layer in layers.values()]
    made = LayerLevels(LEVELS[keys.levels](keys.bits), keys.maps)
    edge = LayerLevels(Uniform(EDGE_BITS), EDGE_BITS)
    plain = set(ROLES) - set(keys.include)
    found = {
        name: edge if role in plain else made
        for name, role in zip(layers, roles_of(shapes), strict=True)
        if not any(fnmatchcase(name, pattern) for pattern in keys.exclude)
    }
    if not found:
        raise StructureError("quantisation: every layer is excluded, or the model has none; leave one in")
    return found


class LearnedQuantisation(MapHook):
    """A hook of `Trainer` that lays weights and maps on levels and learns their steps; in place, until `finish`.

    Weights get `LearnedSteps` as parametrisations, the maps that layers read `MapLevels`; layers that read the same map
    share them. Pruned weights are zero and zero is a level, so `MaskedWeights` beside it holds them as ever.

    Parameters
    ----------
    model : nn.Module
        Trained and pruned, its removed weights at zero.
    inputs : iterable of Tensor
        Calibration inputs, for the maps' first ranges.
    settings : LearnSettings, optional

    Raises
    ------
    StructureError
        If a layer does not run, or see `planned`.

    Notes
    -----
    In a loop of one's own: make it, then the optimiser (the steps are parameters of the model); after ``model.train()``
    call `begin_epoch`; at the end `finish`.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor], settings: LearnKeys | None = None) -> None:
        self.model = model
        self.settings = settings or LearnSettings()
        self.plan = planned(model, self.settings)
        samples = list(inputs)
        chains = {} if self.settings.batch_norm == "kept" else _chains(model, samples)
        self._folded: list[nn.Module] = []
        if self.settings.batch_norm == "before":
            chains = {name: chain for name, chain in chains.items() if name in self.plan}
            self._folded = [model.get_submodule(name) for name in fold_batch_norms(model, chains)]
            chains = {}
        self._frozen = [norm.weight for norm in self._folded if norm.weight.requires_grad]
        for scale in self._frozen:
            scale.requires_grad_(False)
        seen = map_samples(model, self.plan, samples)
        first = first_readers(model, self.plan, samples[0][:2])
        quantisers: dict[tuple[str, int], MapLevels] = {}
        handles = []
        for name, levels in self.plan.items():
            layer, chain = model.get_submodule(name), chains.get(name, Chain())
            weight, device = weight_of(model, name), weight_of(model, name).device
            norm = None if chain.norm is None or chain.pooled else model.get_submodule(chain.norm)
            steps = LearnedSteps(weight, levels.weight, self.settings.start, norm).to(device)
            parametrize.register_parametrization(layer, "weight", steps)
            key = (first[name], levels.map_bits)
            if key not in quantisers:
                low, high = sample_range(self.settings.ranges, seen[name], levels.map_bits)
                quantisers[key] = MapLevels(low, high, levels.map_bits).to(device)
            layer.map_levels = quantisers[key]
            handles.append(layer.register_forward_pre_hook(layer.map_levels.before))
        self.handles = handles

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Batch norms that are folded already do not normalise again."""
        for norm in self._folded:
            norm.eval()

    def after_epoch(self, epoch: int) -> str:
        """How many layers there are."""
        return f"{len(self.plan)} layers on levels"

    def finish(self) -> MapRanges:
        """Leave an ordinary model whose weights lie on their levels, and give the ranges of its maps.

        `rounded_maps` rounds the maps again where the model is to be evaluated.
        """
        self.close()
        found: list[MapRange] = []
        for name, levels in self.plan.items():
            layer = self.model.get_submodule(name)
            trained = weight_of(self.model, name).requires_grad
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight.requires_grad_(trained)
            bias = layer.bias
            del layer.bias
            layer.register_parameter("bias", bias)  # after the weight again, as the class has it
            found.append(range_of(name, layer.map_levels, levels.weight.bits))
            del layer.map_levels
        for scale in self._frozen:
            scale.requires_grad_(True)
        return MapRanges(tuple(found))


def _chains(model: nn.Module, samples: list[Tensor]) -> dict[str, Chain]:
    return chains_of(model, (samples[0][:2].to(device_of(model)),))


def round_network(model: nn.Module, inputs: Iterable[Tensor], settings: RoundKeys | None = None) -> MapRanges:
    """Lay the weights of a trained network on levels without training, in place, and give the ranges of its maps.

    Parameters
    ----------
    model : nn.Module
        Zeros stay zeros.
    inputs : iterable of Tensor
        Calibration inputs.
    settings : RoundSettings, optional

    Returns
    -------
    MapRanges

    Raises
    ------
    StructureError
        If a layer does not run, or see `planned`.
    """
    settings = settings or RoundSettings()
    plan, samples = planned(model, settings), list(inputs)
    chains: dict[str, Chain] = {}
    if settings.equalise or settings.correct_bias:
        chains = _chains(model, samples)
    if settings.equalise:
        equalise(model, chains)
    seen = map_samples(model, plan, samples)
    found, rounded = [], {}
    for name, levels in plan.items():
        weight = weight_of(model, name).detach()
        rounded[name] = on_levels(weight, fitted_steps(weight, levels.weight), levels.weight)
        low, high = sample_range(settings.ranges, seen[name], levels.map_bits)
        found.append(range_of(name, MapLevels(low, high, levels.map_bits), levels.weight.bits))
    ranges = MapRanges(tuple(found))
    if settings.correct_bias:
        correct_biases(model, rounded, ranges, chains, samples)
    else:
        with torch.no_grad():
            for name, weight in rounded.items():
                weight_of(model, name).copy_(weight)
    return ranges
