"""Recipes: ordered training stages and per-layer rules, strict, from TOML."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    InstanceOf,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from sparseflow.core.structures import parse_sparsify, parse_structure
from sparseflow.errors import RecipeError, SparseflowError
from sparseflow.train.allocation import STRATEGIES, Strategy
from sparseflow.train.methods import METHODS
from sparseflow.train.rules import Rule
from sparseflow.train.stages import STRICT, MapStage, MethodStage, Stage, stage_class


class DataConfig(BaseModel):
    """``[data]``: a registered data set and how it is fed."""

    model_config = STRICT
    name: str
    folder: str | None = None
    batch_size: int = Field(default=128, ge=1)
    flip: Literal["none", "random", "alternate"] = "none"
    crop: int = Field(default=0, ge=0)


class ModelConfig(BaseModel):
    """``[model]``: a registered model and its builder's arguments; ``weights`` is a state dictionary to start from."""

    model_config = STRICT
    name: str
    weights: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)


class RuleConfig(BaseModel):
    """``[[rules]]``: layers and what becomes of them; the first rule that matches a layer counts.

    ``sparsify`` says it, or ``choose`` names structures among which ``[allocation]`` chooses, with the density.
    """

    model_config = STRICT
    layers: str
    sparsify: str | None = None
    choose: tuple[str, ...] = Field(default=(), strict=False)
    coupled: bool = False
    include: tuple[Literal["stem", "depthwise", "classifier"], ...] = Field(default=(), strict=False)

    @field_validator("sparsify")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        try:
            if text is not None and text != "dense":
                parse_sparsify(text)
        except SparseflowError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("choose")
    @classmethod
    def _structures(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(parse_structure(text)) for text in texts)
        except SparseflowError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _one_of_both(self) -> RuleConfig:
        if (self.sparsify is None) == (not self.choose):
            raise ValueError("found both or none of sparsify and choose; give one of them")
        try:
            self.rule()
        except SparseflowError as error:
            raise ValueError(str(error)) from None
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


class Recipe(BaseModel):
    """Ordered training stages and per-layer rules.

    ``data`` and ``model`` may be left out when they are given to `run_recipe` as Python objects.
    """

    model_config = STRICT
    name: str
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    data: DataConfig | None = None
    model: ModelConfig | None = None
    rules: tuple[RuleConfig, ...] = Field(default=(), strict=False)
    allocation: SerializeAsAny[InstanceOf[Strategy]] | None = None
    stages: tuple[SerializeAsAny[InstanceOf[Stage]], ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Recipe:
        kinds = [stage.kind for stage in self.stages]
        sparsifying = [i for i, stage in enumerate(self.stages) if isinstance(stage, MethodStage)]
        if len(sparsifying) > 1:
            raise ValueError(f"stages {kinds} hold {len(sparsifying)} sparsifying ones; one is allowed")
        maps = [i for i, stage in enumerate(self.stages) if isinstance(stage, MapStage)]
        end = maps[0] if maps else len(kinds)
        first = sparsifying[0] if sparsifying else end
        ordered = first <= end and len(kinds) - end == len(maps)
        if not ordered or "retrain" in kinds[:first] or "dense" in kinds[first:]:
            raise ValueError(
                f"stages are in the order {kinds}; dense, then one method's, then retrain, then activations and "
                "thresholds is allowed"
            )
        if sparsifying and not self.rules:
            raise ValueError(f"stage {kinds[first]!r} has no [[rules]]; say which layers it prunes")
        open_rules = [i for i, rule in enumerate(self.rules) if rule.choose]
        if open_rules and self.allocation is None:
            raise ValueError(
                f"rules[{open_rules[0]}] says choose; add the section [allocation], which chooses"
            )
        if self.allocation is not None and not (open_rules and sparsifying):
            raise ValueError("[allocation] has nothing to do; give a rule `choose` and a stage that prunes")
        return self

    def fingerprint(self, stage: int) -> str:
        """Identifies all that the outcome of a stage depends on; later stages do not count.

        Parameters
        ----------
        stage : int
            Index of the stage.
        """
        upto = self.stages[: stage + 1]
        content: dict[str, Any] = {"seed": self.seed}  # paths are left out: what they hold counts
        content["data"] = None if self.data is None else _counted(self.data)
        if self.data is not None:
            content["data"].pop("folder", None)
        content["model"] = None if self.model is None else self.model.name
        if self.model is not None and self.model.arguments:
            content["arguments"] = self.model.arguments
        content["stages"] = [_counted(s) for s in upto]
        if any(isinstance(s, MethodStage) for s in upto):
            content["rules"] = [_counted(r) for r in self.rules]
            if self.allocation is not None:
                content["allocation"] = self.allocation.identity()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_FIRST_KEYS = frozenset(
    [
        "name",
        "batch_size",
        "flip",
        "crop",
        "kind",
        "epochs",
        "learning_rate",
        "momentum",
        "weight_decay",
        "warmup",
        "final",
        "label_smoothing",
        "mixup",
        "precision",
        "channels_last",
        "evaluate_every",
        "freeze",
        "rho",
        "rho_factor",
        "rho_steps",
        "update_every",
        "layers",
        "sparsify",
        "include",
    ]
)
"""Keys that count in a fingerprint at their defaults too; any other counts only where it is set."""


def _counted(config: BaseModel) -> dict[str, Any]:
    """What of a section decides about results, so that a new optional key does not disown earlier runs."""
    always = config.model_dump(mode="json", include=set(_FIRST_KEYS))
    return always | config.model_dump(mode="json", exclude_defaults=True)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file.

    Raises
    ------
    RecipeError
        If the file is missing or no TOML, or a key is unknown, missing or of the wrong type; one line that
        names the key's path.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); give the path of a TOML recipe"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML ({str(error).splitlines()[0]}); correct the file") from error
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """The recipe in a dictionary, checked as strictly as a file.

    Raises
    ------
    RecipeError
    """
    stages = content.get("stages")
    if isinstance(stages, list | tuple):
        read = [_read_stage(stage, f"stages[{i}]", where) for i, stage in enumerate(stages)]
        content = content | {"stages": read}
    if "allocation" in content:
        content = content | {"allocation": _read_allocation(content["allocation"], where)}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_describe(error, Recipe)}") from None


def _read_stage(content: Any, place: str, where: str) -> Stage:
    if isinstance(content, Stage):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        known = ", ".join(("dense", "retrain", *METHODS, "activations", "thresholds"))
        raise RecipeError(f"{where}: {place}.kind: missing or no text; known here: {known}; add it")
    try:
        made = stage_class(content["kind"])
    except SparseflowError as error:
        raise RecipeError(
            f"{where}: {place}.kind: {error}; dense, retrain, activations and thresholds are allowed too"
        ) from None
    try:
        return made.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_describe(error, made, place)}") from None


def _read_allocation(content: Any, where: str) -> Strategy:
    if isinstance(content, Strategy):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("strategy"), str):
        known = ", ".join(STRATEGIES)
        raise RecipeError(f"{where}: allocation.strategy: missing or no text; known here: {known}; add it")
    try:
        made = STRATEGIES[content["strategy"]]
    except SparseflowError as error:
        raise RecipeError(f"{where}: allocation.strategy: {error}") from None
    try:
        return made.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_describe(error, made, 'allocation')}") from None


_SECTIONS: dict[str, type[BaseModel]] = {"data": DataConfig, "model": ModelConfig, "rules": RuleConfig}


def _describe(error: ValidationError, section: type[BaseModel], place: str = "") -> str:
    """One line: the key's path, what was found, what is allowed."""
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _describe_detail(details[0], section, place) + more


def _describe_detail(detail: ErrorDetails, section: type[BaseModel], path: str) -> str:
    for i, part in enumerate(detail["loc"]):
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        if i == 0 and section is Recipe:
            section = _SECTIONS.get(part, section)
        path += f".{part}" if path else str(part)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = ", ".join(section.model_fields)
        return f"{path}: unknown key; known here: {known}; correct or remove it"
    if detail["type"] == "missing":
        return f"{path}: missing; add it"
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path or 'recipe'}: found {detail['input']!r}; {message[:1].lower()}{message[1:]}"
