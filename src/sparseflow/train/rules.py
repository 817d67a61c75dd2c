"""Which layers are pruned, to which structure and density."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sparseflow.core.arrays import Array
from sparseflow.core.roles import ROLES, roles_of
from sparseflow.core.structures import (
    Filter,
    GroupStructure,
    Pattern,
    PatternConnectivity,
    Product,
    Structure,
    choose_library,
)
from sparseflow.errors import StructureError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Rule:
    """Layers whose name matches get a structure, or stay dense.

    Parameters
    ----------
    layers : str
        A module's name, or a pattern of shell wildcards over the names of all convolution and linear modules.
    structure : Structure or None
        None keeps the layers dense.
    density : float
        Fraction of weights to keep, in [0, 1].
    include : tuple of str
        Of "stem", "depthwise", "classifier": roles that a wildcard leaves dense otherwise. A name without
        wildcards is always meant.
    choices : tuple of Structure
        The structures among which an allocation chooses for each layer, and with them the density; `structure` is
        then None. Without an allocation the layers stay dense.
    coupled : bool
        Filters only: layers whose channels meet keep the same ones, which can then be removed from the tensors.

    Raises
    ------
    StructureError
        For a structure beside choices, coupled ones other than filters, a density outside [0, 1] or one that the
        structure cannot have, an unknown role.
    """

    layers: str
    structure: Structure | None
    density: float = 1.0
    include: tuple[str, ...] = ()
    choices: tuple[Structure, ...] = ()
    coupled: bool = False

    def __post_init__(self) -> None:
        if self.coupled and not isinstance(self.structure, Filter):
            raise StructureError(
                f"rule {self.layers!r}: coupled is for the structure filter, not {self.structure}; the channels of the "
                "readers go with the filters"
            )
        if self.choices and self.structure is not None:
            raise StructureError(f"rule {self.layers!r}: has both a structure and choices; give one of them")
        unknown = sorted(set(self.include) - set(ROLES))
        if unknown:
            raise StructureError(
                f"rule {self.layers!r}: unknown role {unknown[0]!r}; {', '.join(ROLES)} are allowed"
            )
        if self.structure is not None:
            object.__setattr__(self, "density", self.structure.check_density(self.density))


@dataclass(frozen=True)
class Target:
    """A layer to be pruned.

    Parameters
    ----------
    name : str
        The module's name; its parameter is ``name.weight``.
    structure : Structure
    density : float
    """

    name: str
    structure: Structure
    density: float


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """All convolution and linear modules by name, in the order of their definition, shared ones once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}


def weight_of(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of a layer; (filters, channels of a group, *kernel) or (out, in).

    Of one whose steps are being learned it is the weight before it is put on its levels.
    """
    layer = model.get_submodule(name)
    weight = layer.weight
    if is_parametrized(layer, "weight") and all(
        getattr(p, "keeps_zero", False) for p in layer.parametrizations.weight
    ):
        weight = layer.parametrizations.weight.original
    if not isinstance(weight, nn.Parameter):
        raise StructureError(f"{name}: its weight is not a parameter; remove its parametrization first")
    return weight


def role_of(model: nn.Module, name: str) -> str:
    """The role of a layer as `roles_of` says; the layers are taken in the order of their definition."""
    layers = layers_of(model)
    shapes = [(tuple(layer.weight.shape), getattr(layer, "groups", 1)) for layer in layers.values()]
    return dict(zip(layers, roles_of(shapes), strict=True))[name]


def select_targets(model: nn.Module, rules: tuple[Rule, ...]) -> tuple[Target, ...]:
    """The layers to prune; for each layer the first rule that matches counts.

    Raises
    ------
    StructureError
        If a rule matches no layer at all, or its structure does not fit a layer.
    """
    layers = layers_of(model)
    for rule in rules:
        if not any(fnmatchcase(name, rule.layers) for name in layers):
            raise StructureError(
                f"rule {rule.layers!r}: matches none of the layers {', '.join(layers) or '(none)'}; correct its name"
            )
    targets = []
    for name in layers:
        rule_ = rule_for(model, name, rules)
        if rule_ is None or rule_.structure is None:
            continue
        try:
            rule_.structure.check(tuple(weight_of(model, name).shape))
        except StructureError as error:
            raise StructureError(f"layer {name!r}, rule {rule_.layers!r}: {error}") from error
        targets.append(Target(name, rule_.structure, rule_.density))
    return tuple(targets)


def rule_for(model: nn.Module, name: str, rules: tuple[Rule, ...]) -> Rule | None:
    """The first rule that matches a layer; None if none does, or it leaves out layers of this one's role."""
    role = role_of(model, name)
    for rule in rules:
        if rule.layers == name:
            return rule
        if fnmatchcase(name, rule.layers):
            return rule if not role or role in rule.include else None
    return None


def with_library(structure: Structure, scores: Array) -> Structure:
    """``structure``, its pattern library fixed to the one that ``scores`` suggest, if it has one to choose.

    A method that projects again and again needs this: else every projection might choose another library.
    """
    if isinstance(structure, Pattern | PatternConnectivity) and structure.library is None:
        library = choose_library(scores, structure.entries, structure.patterns)
        return replace(structure, library=library)
    if isinstance(structure, Product):
        inner = with_library(structure.inner, scores)
        return replace(structure, inner=inner) if isinstance(inner, GroupStructure) else structure
    return structure


def array_of(scores: Tensor) -> Array:
    """Scores on the CPU, as float64 if they are, float32 otherwise."""
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    array: Array = scores.detach().to("cpu", dtype).contiguous().numpy()
    return array


def scores_of(weight: Tensor, power: int = 1, dtype: torch.dtype = torch.float32) -> Array:
    """Magnitudes of a weight to the given power, on the CPU."""
    magnitudes = weight.detach().to("cpu", dtype).abs().contiguous()
    scores: Array = (magnitudes if power == 1 else magnitudes**power).numpy()
    return scores
