"""What a sparsity method is, the two ways in which one works, and the registry of methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sparseflow.core.arrays import Array
from sparseflow.core.mask import Mask
from sparseflow.core.structures import Structure, parse_structure
from sparseflow.errors import StructureError
from sparseflow.registry import Registry
from sparseflow.train.rules import (
    Rule,
    Target,
    scores_of,
    select_targets,
    weight_of,
    with_library,
)
from sparseflow.train.settings import Settings
from sparseflow.train.trainer import Hook


class Need(StrEnum):
    """What a method uses besides the weights."""

    NOTHING = "nothing"
    CRITERION = "what its criterion reads"
    CALIBRATION = "calibration data"
    TRAINING = "training"


class MethodSettings(Settings):
    """Base of the methods' settings; each field is a key of the method's stage in a recipe."""


class CalibrationSettings(MethodSettings):
    """Settings of a method that looks at data but does not train.

    Parameters
    ----------
    samples : int
        How many samples are looked at, taken from the training data.
    """

    samples: int = Field(default=512, ge=1)


class TrainingSettings(MethodSettings):
    """Settings of a method that works while a network is trained.

    Parameters
    ----------
    epochs : int
        Length of the training; ramps are spread over it.
    """

    epochs: int = Field(ge=1)


class Method(ABC):
    """Leads a model to a structure.

    Parameters
    ----------
    model : nn.Module
    rules : sequence of Rule
        Which layers, which structure, which density; the first match counts.
    settings : MethodSettings, optional
        Of the class `Settings`; its defaults otherwise.

    Attributes
    ----------
    needs : Need
    Settings : type of MethodSettings
    when : str
        When to choose it; one sentence for the table in the documentation.

    Raises
    ------
    StructureError
        If a structure does not fit a layer, the method refuses it, or a rule matches nothing.
    """

    needs: ClassVar[Need]
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    when: ClassVar[str]

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        self.model = model
        self.targets = self.targets_of(model, rules)
        self.settings: Any = self.Settings() if settings is None else settings

    @classmethod
    def refuses(cls, structure: Structure, layer: nn.Module) -> str | None:
        """Why this method cannot lead ``layer`` to ``structure``, or None if it can."""
        return None

    @classmethod
    def targets_of(cls, model: nn.Module, rules: tuple[Rule, ...] | list[Rule]) -> tuple[Target, ...]:
        """The layers that the rules prune.

        Raises
        ------
        StructureError
        """
        targets = select_targets(model, tuple(rules))
        for target in targets:
            reason = cls.refuses(target.structure, model.get_submodule(target.name))
            if reason is not None:
                raise StructureError(
                    f"layer {target.name!r}: {cls.__name__} refuses {target.structure}: {reason}"
                )
        return targets

    def weight(self, target: Target) -> nn.Parameter:
        """The target's weight, shape (out, in, *kernel)."""
        return weight_of(self.model, target.name)

    def scores(self, target: Target) -> Array | None:
        """What each weight of a layer counts, shape of the weight; None if the method has no criterion for it."""
        return None

    @abstractmethod
    def finish(self) -> dict[str, Mask]:
        """The masks by layer name; `MaskedWeights` applies them."""

    def masks_by(self, scores: Callable[[Target], Array]) -> dict[str, Mask]:
        """The masks of the highest scores of each layer, at the density of the rules."""
        return {t.name: t.structure.mask(scores(t), t.density) for t in self.targets}

    def squares(self, target: Target) -> Array:
        """The weights' squares, whose sum over a unit is what a projection removes with it."""
        return scores_of(self.weight(target), 2)


class OneShot(Method):
    """A method that does not train: ``calibrate`` if it needs data, then ``finish``."""

    needs: ClassVar[Need] = Need.NOTHING

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Look at ``settings.samples`` samples of ``batches`` of (x, labels)."""


class InTraining(Method, Hook):
    """A method that works in a training loop: one's own, or `Trainer`'s, whose `Hook` it is.

    The order of calls is ``begin_epoch``, then for each batch ``penalty`` (added to the loss), ``backward``,
    ``before_step``, the optimiser's step, ``after_step``; then ``after_epoch``. Between batches the model's
    weights are those to evaluate.

    Attributes
    ----------
    by_layer : tuple of str
        Names of the attributes that are the method's state: tensors of the weights' shapes by layer, none at first.
    numbers : tuple of str
        Names of those that are numbers.
    """

    needs: ClassVar[Need] = Need.TRAINING
    Settings: ClassVar[type[MethodSettings]] = TrainingSettings
    by_layer: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module, rules: tuple[Rule, ...] | list[Rule], settings: Any = None) -> None:
        super().__init__(model, rules, settings)
        self.targets = tuple(
            replace(t, structure=with_library(t.structure, self.squares(t))) for t in self.targets
        )
        for part in self.by_layer:
            setattr(self, part, {})

    def remove(self, removed: Mapping[str, Tensor]) -> None:
        """Set weights to zero: bool tensors by layer, of some layers."""
        with torch.no_grad():
            for target in self.targets:
                if target.name in removed:
                    self.weight(target).masked_fill_(removed[target.name], 0.0)

    def kept(self, target: Target, mask: Mask) -> Tensor:
        """What ``mask`` keeps of a layer as bool, on the device of its weight."""
        return torch.from_numpy(mask.keep.copy()).to(self.weight(target).device)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain containers."""
        if not self.by_layer:
            return {}
        structures = {t.name: str(t.structure) for t in self.targets}  # with their libraries
        numbers = {name: getattr(self, name) for name in self.numbers}
        return (
            {part: dict(getattr(self, part)) for part in self.by_layer} | {"structures": structures} | numbers
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of other layers.
        """
        if not self.by_layer:
            return
        weights = {t.name: self.weight(t) for t in self.targets}
        tensors = [item for part in self.by_layer for item in state[part].items()]
        if set(state["structures"]) != set(weights) or any(t.shape != weights[n].shape for n, t in tensors):
            raise ValueError("its state is of other layers")
        structures = {name: parse_structure(text) for name, text in state["structures"].items()}
        self.targets = tuple(replace(t, structure=structures[t.name]) for t in self.targets)
        for part in self.by_layer:
            here = {n: t.to(weights[n].device, copy=True) for n, t in state[part].items()}
            setattr(self, part, here)
        for name in self.numbers:
            setattr(self, name, state[name])


METHODS: Registry[type[Method]] = Registry("method")


class MaskedWeights(Hook):
    """Keeps removed weights at exactly zero while a model is retrained.

    The weights are masked when it is made; `after_step` masks them again, whatever momentum and weight decay
    did.

    Parameters
    ----------
    model : nn.Module
    masks : dict of Mask
        By layer name, as `Method.finish` returns them.
    silent : mapping of str to Tensor, optional
        bool by parameter name: what else is zero, such as biases of removed channels (`CoupledChannels.silent`).
    """

    def __init__(
        self, model: nn.Module, masks: dict[str, Mask], silent: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model = model
        self._silent = {n: r.to(model.get_parameter(n).device) for n, r in (silent or {}).items()}
        self.masks = masks
        self._removed: dict[str, Tensor] = {}
        self._set({name: torch.from_numpy(~mask.keep) for name, mask in masks.items()})
        self.after_step()

    def after_step(self) -> None:
        """Set all removed weights to zero."""
        with torch.no_grad():
            for name, removed in self._removed.items():
                weight_of(self.model, name).masked_fill_(removed, 0.0)
            for name, removed in self._silent.items():
                self.model.get_parameter(name).masked_fill_(removed, 0.0)

    def after_epoch(self, epoch: int) -> str:
        """The sparsity of the masked layers together."""
        removed = sum(int(r.sum()) for r in self._removed.values())
        total = sum(r.numel() for r in self._removed.values())
        return f"sparsity {removed / max(total, 1):.4f}"

    def state_dict(self) -> dict[str, Any]:
        """The removed positions by layer name."""
        return {name: removed.cpu() for name, removed in self._removed.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the positions of `state_dict`."""
        if {n: tuple(r.shape) for n, r in state.items()} != {n: m.shape for n, m in self.masks.items()}:
            raise ValueError("its masks are of other layers")
        self._set(state)
        self.after_step()

    def _set(self, removed: dict[str, Tensor]) -> None:
        self._removed = {n: r.to(weight_of(self.model, n).device) for n, r in removed.items()}
