"""The sections of a recipe that say on what it runs: data, model, rules."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from sparseflow.core.structures import parse_sparsify, parse_structure
from sparseflow.train.rules import Rule
from sparseflow.train.settings import STRICT, told_in_validation


class DataConfig(BaseModel):
    """``[data]``: a registered data set (``name``), a folder of images, or a factory's loaders; how they are fed."""

    model_config = STRICT
    name: str | None = None
    folder: str | None = None
    batch_size: int = Field(default=128, ge=1)
    flip: Literal["none", "random", "alternate"] = "none"
    crop: int = Field(default=0, ge=0)
    size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] = 3
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    validation: int = Field(default=0, ge=0)
    factory: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.factory is not None and (self.name is not None or self.folder is not None):
            raise ValueError("factory is given beside name or folder; one source of data is allowed")
        if self.factory is None and self.name is None and self.folder is None:
            raise ValueError("there is no source; give name, folder or factory")
        if self.folder is not None and self.name is None and self.size is None:
            raise ValueError("size is missing; a folder of images needs the side in pixels that they get")
        if self.factory is not None and self.validation > 0:
            raise ValueError("validation is given beside factory, whose loaders are not split; leave it out")
        return self


class ModelConfig(BaseModel):
    """``[model]``: a registered model or a factory, and its arguments; ``weights`` is a state dictionary to start
    from."""

    model_config = STRICT
    name: str | None = None
    weights: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    factory: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.name is None) == (self.factory is None):
            raise ValueError(f"found name {self.name!r} and factory {self.factory!r}; exactly one is allowed")
        return self


class RuleConfig(BaseModel):
    """``[[rules]]``: layers and what becomes of them; the first rule that matches a layer counts.

    ``sparsify`` says it, or ``choose`` names structures among which ``[allocation]`` chooses, with the density.
    """

    model_config = STRICT
    layers: str
    sparsify: str | None = None
    choose: tuple[str, ...] = Field(default=(), strict=False)
    coupled: bool = False
    include: tuple[str, ...] = Field(default=(), strict=False)

    @field_validator("sparsify")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        with told_in_validation():
            if text is not None and text != "dense":
                parse_sparsify(text)
        return text

    @field_validator("choose")
    @classmethod
    def _structures(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        with told_in_validation():
            return tuple(str(parse_structure(text)) for text in texts)

    @model_validator(mode="after")
    def _one_of_both(self) -> RuleConfig:
        if (self.sparsify is None) == (not self.choose):
            raise ValueError("found both or none of sparsify and choose; give one of them")
        with told_in_validation():
            self.rule()
        return self

    def rule(self) -> Rule:
        """As the methods and the allocation take it."""
        include, coupled = self.include, self.coupled
        if self.sparsify is None:
            return Rule(self.layers, None, 1.0, include, tuple(map(parse_structure, self.choose)), coupled)
        if self.sparsify == "dense":
            return Rule(self.layers, None, 1.0, include, (), coupled)
        spec = parse_sparsify(self.sparsify)
        return Rule(self.layers, spec.structure, spec.density, include, (), coupled)
