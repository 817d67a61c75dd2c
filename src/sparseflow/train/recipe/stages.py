"""The stages of a recipe, each a strict section: dense, a method's, masked retraining, sparse maps, low precision."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, ClassVar, Literal

from pydantic import Field, create_model, model_validator
from torch import nn

from sparseflow.train.activations import (
    REGULARISERS,
    Activation,
    DensityRamp,
    FATReLU,
    MapHook,
    MapRegulariser,
    TopK,
    sparsify_activations,
)
from sparseflow.train.methods import Method, MethodSettings, Need, method_of
from sparseflow.train.quantise.network import LearnKeys, QuantiseKeys, RoundKeys
from sparseflow.train.settings import StageKeys, TrainKeys, TrainSettings, told_in_validation


class Stage(StageKeys):
    """``[[stages]]``: its ``kind`` is one of `OWN_KINDS` or a method's name."""

    kind: str


class TrainedStage(Stage, TrainKeys):
    """What every stage that trains has."""

    learning_rate: float = Field(gt=0)

    def settings(self) -> TrainSettings:
        """As the trainer takes them."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})


class DenseStage(TrainedStage):
    """``kind = "dense"``: ordinary training."""

    kind: Literal["dense"]

    @model_validator(mode="after")
    def _has_no_teacher(self) -> DenseStage:
        if self.distill > 0:
            raise ValueError(
                f"distill is {self.distill}, but the dense network is the teacher of later stages only"
            )
        return self


class RetrainStage(TrainedStage):
    """``kind = "retrain"``: training with the removed weights held at zero."""

    kind: Literal["retrain"]


class MapStage(Stage):
    """What the stages that make feature maps sparse have: whose activations they work on."""

    activations: tuple[str, ...] = Field(default=("*",), strict=False, min_length=1)

    def prepare(self, model: nn.Module) -> dict[str, Activation]:
        """The activations by name, put in the places of the model's own if they are not there yet."""
        return sparsify_activations(model, names=self.activations)


class ActivationsStage(TrainedStage, MapStage):
    """``kind = "activations"``: training towards sparse maps, with `FATReLU` or `TopK` in the place of ReLUs."""

    kind: Literal["activations"]
    activation: Literal["fatrelu", "topk"] = "fatrelu"
    relufy: bool = False
    density: float | None = Field(default=None, gt=0, lt=1)
    ramp: float = Field(default=0.0, ge=0)
    regulariser: str | None = None
    strength: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> ActivationsStage:
        if self.activation == "topk" and self.density is None:
            raise ValueError("activation is topk, but no density says how many channels it keeps")
        if self.regulariser is not None and self.regulariser not in REGULARISERS:
            raise ValueError(f"regulariser is {self.regulariser!r}; known: {', '.join(REGULARISERS)}")
        if (self.regulariser is not None) != (self.strength > 0):
            raise ValueError("a regulariser needs a strength above 0, and a strength a regulariser")
        return self

    def prepare(self, model: nn.Module) -> dict[str, Activation]:
        """See `MapStage`."""
        keep = self.density or 1.0
        make = FATReLU if self.activation == "fatrelu" else partial(TopK, keep)
        return sparsify_activations(model, make, names=self.activations, relufy=self.relufy)

    def hooks(self, activations: dict[str, Activation]) -> list[MapHook]:
        """What works on the activations while the network is trained."""
        hooks: list[MapHook] = []
        if self.density is not None and self.activation == "fatrelu":
            hooks.append(DensityRamp(activations, self.density, self.ramp))
        if self.regulariser is not None:
            hooks.append(MapRegulariser(activations, self.regulariser, self.strength))
        return hooks


class ThresholdsStage(MapStage):
    """``kind = "thresholds"``: no training; thresholds as large as the accuracy budget lets them be."""

    kind: Literal["thresholds"]
    budget: float = Field(ge=0, le=1)
    samples: int = Field(default=2000, ge=1)


class LevelsStage(Stage, QuantiseKeys):
    """What the stages that put weights and maps on levels have."""


class QuantiseStage(TrainedStage, LevelsStage, LearnKeys):
    """``kind = "quantise"``: training with weights and maps on levels, removed weights held at zero."""

    kind: Literal["quantise"]

    @model_validator(mode="after")
    def _folded_for_good(self) -> QuantiseStage:
        if self.batch_norm == "before" and self.recalibrate > 0:
            raise ValueError(
                'recalibrate has no batch norms left to work on with batch_norm "before"; set it to 0'
            )
        return self


class PostTrainingStage(LevelsStage, RoundKeys):
    """``kind = "post_training"``: no training; weights and maps are put on levels as well as may be."""

    kind: Literal["post_training"]


class MethodStage(Stage):
    """A stage that sparsifies; `stage_class` adds the settings of its method."""

    method_class: ClassVar[type[Method]]

    def method_settings(self) -> MethodSettings:
        """As the method takes them."""
        settings = self.method_class.Settings
        return settings(**{name: getattr(self, name) for name in settings.model_fields})

    @model_validator(mode="after")
    def _settings_fit_together(self) -> MethodStage:
        with told_in_validation():
            self.method_settings()
        return self


OWN_KINDS: dict[str, type[Stage]] = {
    "dense": DenseStage,
    "retrain": RetrainStage,
    "activations": ActivationsStage,
    "thresholds": ThresholdsStage,
    "quantise": QuantiseStage,
    "post_training": PostTrainingStage,
}
"""Kinds of stages that are no sparsity method."""


def stage_class(kind: str) -> type[Stage]:
    """The class of stages of a kind: of `OWN_KINDS`, a method's name, or a criterion's for one-shot pruning.

    Raises
    ------
    RegistryError
        If neither a method nor such a criterion has that name.
    """
    if kind in OWN_KINDS:
        return OWN_KINDS[kind]
    method, said = method_of(kind)
    return _method_stage(kind, method, tuple(said.items()))


@cache
def _method_stage(kind: str, method: type[Method], said: tuple[tuple[str, Any], ...]) -> type[MethodStage]:
    """The method's settings as keys, beside those of a training if it trains; both may share ``epochs``.

    What the kind itself has ``said`` can only be repeated.
    """
    settings: dict[str, Any] = {n: (f.annotation, f) for n, f in method.Settings.model_fields.items()}
    settings |= {name: (Literal[value], value) for name, value in said}
    settings["kind"] = (Literal[kind], ...)
    bases: tuple[type[Any], ...] = (
        (MethodStage, TrainedStage) if method.needs is Need.TRAINING else (MethodStage,)
    )
    made: type[MethodStage] = create_model(
        f"{method.__name__}Stage", __base__=bases, __doc__=method.__doc__, **settings
    )
    made.method_class = method
    return made
