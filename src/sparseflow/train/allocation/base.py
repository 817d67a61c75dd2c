"""What an allocation decides, on what, and the registry of strategies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from pydantic import BaseModel, Field
from torch import nn

from sparseflow.core.arrays import Shape
from sparseflow.core.codec import decode, encode
from sparseflow.core.structures import Structure, parse_structure
from sparseflow.errors import StructureError
from sparseflow.registry import Registry
from sparseflow.train.rules import Rule, layers_of, rule_for, weight_of
from sparseflow.train.settings import STRICT
from sparseflow.train.trainer import Loader


@dataclass(frozen=True)
class Slot:
    """A layer whose density is to be decided.

    Attributes
    ----------
    name : str
        Of the module.
    shape : tuple of int
        Of the weight: OIHW or (out, in).
    structures : tuple of Structure
        Those that its rule allows and that fit it; at least one.
    """

    name: str
    shape: Shape
    structures: tuple[Structure, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    def only(self, strategy: str) -> Structure:
        """The one structure, for strategies that decide densities alone.

        Raises
        ------
        StructureError
            If there are several.
        """
        if len(self.structures) > 1:
            found = ", ".join(map(str, self.structures))
            raise StructureError(
                f"layer {self.name!r}: {strategy} does not choose between {found}; let its rule choose from one, or "
                "take the strategy 'latency'"
            )
        return self.structures[0]


@dataclass(frozen=True)
class Assigned:
    """What was decided for a layer.

    Attributes
    ----------
    structure : Structure or None
        None leaves the layer dense.
    density : float
        Kept fraction, 1 for a dense layer.
    loss : float or None
        The loss increase that was expected of it, where the strategy estimates one.
    time_s : float or None
        What its kernel takes by the table, where there is one.
    nbytes : int or None
        Packed weights and index, by the table.
    """

    name: str
    structure: Structure | None
    density: float
    loss: float | None = None
    time_s: float | None = None
    nbytes: int | None = None

    def rule(self) -> Rule:
        """The decision as a rule for this layer alone."""
        return Rule(self.name, self.structure, self.density)

    def encoded(self) -> dict[str, Any]:
        """As plain JSON data, the structure as text."""
        return {**encode(replace(self, structure=None)), "structure": str(self.structure or "dense")}

    @classmethod
    def decoded(cls, data: dict[str, Any]) -> Assigned:
        """The inverse of `encoded`."""
        text = data["structure"]
        structure = None if text == "dense" else parse_structure(text)
        return replace(decode(cls, {**data, "structure": None}), structure=structure)


@dataclass(frozen=True)
class Problem:
    """The trained dense model, the layers to decide on, and data to look at.

    Attributes
    ----------
    loader : Loader
        Batches of (x, labels); strategies that need no data leave it alone.
    """

    model: nn.Module
    slots: tuple[Slot, ...]
    loader: Loader

    @property
    def weights(self) -> int:
        """Weights of all slots."""
        return sum(slot.size for slot in self.slots)


class Strategy(BaseModel, ABC):
    """Shares a budget out among layers; the fields are the keys of ``[allocation]`` in a recipe."""

    model_config = STRICT

    @abstractmethod
    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """The decision for every slot; the model is left as it is.

        Raises
        ------
        StructureError
            If a slot's structures are not what the strategy can handle, or the budget cannot be kept.
        """

    def identity(self) -> dict[str, Any]:
        """All that the outcome depends on besides model and data, JSON-ready."""
        return self.model_dump(mode="json")


class SparsityBudget(Strategy):
    """A strategy that keeps a share of the weights of all its layers together.

    Attributes
    ----------
    sparsity : float
        Removed fraction of the weights of all layers that are allocated, taken together.
    """

    sparsity: float = Field(gt=0, lt=1)

    def kept(self, problem: Problem) -> float:
        """Weights that may stay."""
        return (1.0 - self.sparsity) * problem.weights


class Proportional(SparsityBudget):
    """A budget that is shared out in proportion to a number for each layer."""

    def allocate(self, problem: Problem) -> tuple[Assigned, ...]:
        """See `Strategy`."""
        name = self.model_dump()["strategy"]
        structures = [slot.only(name) for slot in problem.slots]
        densities = share_out(
            [slot.size for slot in problem.slots],
            [self.share(slot) for slot in problem.slots],
            [structure.max_density for structure in structures],
            self.kept(problem),
        )
        decided = zip(problem.slots, structures, densities, strict=True)
        return tuple(Assigned(slot.name, structure, density) for slot, structure, density in decided)

    @abstractmethod
    def share(self, slot: Slot) -> float:
        """What the layer's density is in proportion to."""


STRATEGIES: Registry[type[Strategy]] = Registry("allocation strategy")


def slots_of(model: nn.Module, rules: Sequence[Rule]) -> tuple[Slot, ...]:
    """The layers whose rule leaves the density open.

    Raises
    ------
    StructureError
        If none of a layer's structures fits it, or no layer is left open.
    """
    slots = []
    for name in layers_of(model):
        rule = rule_for(model, name, tuple(rules))
        if rule is None or not rule.choices:
            continue
        shape, fitting, reason = tuple(weight_of(model, name).shape), [], ""
        for structure in rule.choices:
            try:
                structure.check(shape)
            except StructureError as error:
                reason = str(error)
            else:
                fitting.append(structure)
        if not fitting:
            raise StructureError(f"layer {name!r}, rule {rule.layers!r}: none of its choices fits: {reason}")
        slots.append(Slot(name, shape, tuple(fitting)))
    if not slots:
        raise StructureError(
            "allocation: no rule with `choose` matches a layer; there is nothing to allocate"
        )
    return tuple(slots)


def share_out(
    sizes: Sequence[int], weights: Sequence[float], caps: Sequence[float], kept: float
) -> list[float]:
    """Densities in proportion to ``weights``, at most ``caps``, that keep ``kept`` of ``sizes`` together.

    What a capped layer cannot take is shared out among the others.

    Raises
    ------
    StructureError
        If the caps together keep less than ``kept``.
    """
    most = sum(s * c for s, c in zip(sizes, caps, strict=True))
    if kept > most * (1 + 1e-9):
        raise StructureError(
            f"allocation: sparsity {1 - kept / sum(sizes):.3f} asked for, but the structures remove at least "
            f"{1 - most / sum(sizes):.3f}; ask for a higher sparsity"
        )
    free = set(range(len(sizes)))
    while free:
        left = kept - sum(sizes[i] * caps[i] for i in range(len(sizes)) if i not in free)
        scale = left / sum(sizes[i] * weights[i] for i in free)
        over = {i for i in free if scale * weights[i] > caps[i]}
        if not over:
            break
        free -= over
    return [scale * weights[i] if i in free else caps[i] for i in range(len(sizes))]
