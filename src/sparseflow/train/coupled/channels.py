"""The same channels chosen in all layers that share them, held silent, and removed for good."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparseflow.core.arrays import Array, round_half_up
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Filter
from sparseflow.errors import StructureError
from sparseflow.train.coupled.wiring import Ports, Wiring, wiring_of
from sparseflow.train.rules import Rule, rule_for, scores_of, weight_of


class CoupledChannels:
    """Which units of a model are kept.

    Attributes
    ----------
    wiring : Wiring
    kept : ndarray of bool (units,)
    """

    def __init__(self, wiring: Wiring, kept: Array) -> None:
        self.wiring, self.kept = wiring, kept

    @classmethod
    def chosen(
        cls,
        model: nn.Module,
        rules: Sequence[Rule],
        example_inputs: tuple[Tensor, ...],
        scores: Mapping[str, Array] | None = None,
    ) -> CoupledChannels:
        """The units of the highest scores, in every set of layers whose rules say so.

        A unit's score is the mean over its filters, each layer's taken relative to that layer's mean. A set is
        pruned only if a coupled rule prunes each of its layers, depthwise ones excepted, which follow.

        Parameters
        ----------
        model : nn.Module
        rules : sequence of Rule
        example_inputs : tuple of Tensor
        scores : mapping, optional
            Of single weights by layer, as `Method.scores` gives them; magnitudes for layers without.

        Raises
        ------
        StructureError
            If the rules of one set ask for different densities, or no set can be pruned.

        References
        ----------
        G. Fang et al., CVPR 2023, section 3.4 (importance of a group).
        """
        wiring = wiring_of(model, example_inputs)
        kept = np.ones(wiring.units, bool)
        for layers in wiring.sets():
            density = _density(model, rules, wiring, layers)
            if density is not None:
                kept &= _kept(model, wiring, layers, density, scores or {})
        if kept.all():
            raise StructureError(
                "coupled rules: no set of layers is pruned; every layer of a set has to be in a coupled rule; the sets "
                f"are {'; '.join(', '.join(s) for s in wiring.sets())}"
            )
        return cls(wiring, kept)

    @classmethod
    def of_masks(
        cls,
        model: nn.Module,
        rules: Sequence[Rule],
        masks: Mapping[str, Mask],
        example_inputs: tuple[Tensor, ...],
    ) -> CoupledChannels:
        """The units whose filters `masks` left in layers of coupled rules."""
        wiring = wiring_of(model, example_inputs)
        kept = np.ones(wiring.units, bool)
        for name, mask in masks.items():
            if _rule(model, rules, name) is not None:
                kept[wiring.layers[name].outputs[~mask.keep.reshape(len(mask.keep), -1).any(axis=1)]] = False
        return cls(wiring, kept)

    def joined(self, model: nn.Module, rules: Sequence[Rule], masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """A method's masks with those of coupled layers in place of what it would have chosen for each of them."""
        others = {name: mask for name, mask in masks.items() if _rule(model, rules, name) is None}
        return others | self.masks(model)

    def masks(self, model: nn.Module) -> dict[str, Mask]:
        """Masks of whole filters for the layers that lose some."""
        found = {}
        for name, ports in self.wiring.layers.items():
            keep = self.kept[ports.outputs]
            if not keep.all():
                shape = tuple(weight_of(model, name).shape)
                column = keep.reshape(-1, *(1,) * (len(shape) - 1))
                found[name] = Mask(np.broadcast_to(column, shape), Filter())
        return found

    def silent(self, model: nn.Module) -> dict[str, Tensor]:
        """bool by parameter name: biases, scales and shifts that have to be zero for removed channels to be zero."""
        owners = {n: p.outputs for n, p in self.wiring.layers.items()} | self.wiring.norms
        found = {}
        for name, units in owners.items():
            removed = torch.from_numpy(~self.kept[units])
            for part in ("bias",) if name in self.wiring.layers else ("weight", "bias"):
                if removed.any() and getattr(model.get_submodule(name), part) is not None:
                    found[f"{name}.{part}"] = removed
        return found

    def removed(self, model: nn.Module) -> nn.Module:
        """A copy of the model without the removed channels; where they are silent it computes the same."""
        small = copy.deepcopy(model)
        with torch.no_grad():
            for name, ports in self.wiring.layers.items():
                _cut_layer(small.get_submodule(name), ports, self.kept)
            for name, units in self.wiring.norms.items():
                _cut_norm(small.get_submodule(name), torch.from_numpy(np.flatnonzero(self.kept[units])))
        return small


def coupled_rules(rules: Sequence[Rule]) -> bool:
    """Whether some rule is coupled."""
    return any(rule.coupled for rule in rules)


def _rule(model: nn.Module, rules: Sequence[Rule], name: str) -> Rule | None:
    """The rule of a layer if it is a coupled one."""
    rule = rule_for(model, name, tuple(rules))
    return rule if rule is not None and rule.coupled else None


def _density(model: nn.Module, rules: Sequence[Rule], wiring: Wiring, layers: Sequence[str]) -> float | None:
    """The density that the coupled rules ask for a set of layers; None if the set stays whole."""
    densities = set()
    for name in layers:
        ports = wiring.layers[name]
        if ports.groups > 1 and ports.groups == len(ports.inputs):
            continue
        rule = _rule(model, rules, name)
        if rule is None:
            return None
        densities.add(rule.density)
    if len(densities) > 1:
        raise StructureError(
            f"layers {', '.join(layers)} are coupled, but their rules ask for the densities {sorted(densities)}; give "
            "them one"
        )
    return densities.pop() if densities else None


def _kept(
    model: nn.Module, wiring: Wiring, layers: Sequence[str], density: float, given: Mapping[str, Array]
) -> Array:
    """bool (units,): False for the units of this set that go."""
    total, count = np.zeros(wiring.units), np.zeros(wiring.units)
    for name in layers:
        scores = given[name] if name in given else scores_of(weight_of(model, name))
        score = scores.reshape(len(scores), -1).mean(axis=1, dtype=np.float64)
        np.add.at(total, wiring.layers[name].outputs, score / max(float(score.mean()), 1e-30))
        np.add.at(count, wiring.layers[name].outputs, 1.0)
    mine = np.flatnonzero(count)
    free = mine[~wiring.pinned[mine]]
    go = len(mine) - max(1, round_half_up(density * len(mine)))
    mean = total[free] / count[free]
    order = free[np.lexsort((-free, mean))]  # of equal ones the higher index goes first
    kept = np.ones(wiring.units, bool)
    kept[order[:go]] = False
    return kept


def _cut_layer(module: nn.Module, ports: Ports, kept: Array) -> None:
    rows = torch.from_numpy(np.flatnonzero(kept[ports.outputs]))
    depthwise = ports.groups > 1 and ports.groups == len(ports.inputs)
    columns = kept[ports.inputs]
    weight = module.weight.detach()[rows]
    if not depthwise:
        first = columns.reshape(ports.groups, -1)[0]  # the other groups keep the same places
        weight = weight[:, torch.from_numpy(np.flatnonzero(first))]
    module.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[rows].clone())
    sizes: Mapping[str, int] = {"out": len(rows), "in": int(columns.sum())}
    suffix = "features" if isinstance(module, nn.Linear) else "channels"
    for side, size in sizes.items():
        setattr(module, f"{side}_{suffix}", size)
    if depthwise:
        module.groups = sizes["in"]


def _cut_norm(module: nn.Module, rows: Tensor) -> None:
    for part in ("weight", "bias"):
        setattr(module, part, nn.Parameter(getattr(module, part).detach()[rows].clone()))
    for part in ("running_mean", "running_var"):
        if getattr(module, part) is not None:
            setattr(module, part, getattr(module, part)[rows].clone())
    module.num_features = len(rows)
