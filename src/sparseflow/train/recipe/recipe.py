"""Recipes: ordered training stages and per-layer rules, strict, from TOML."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    InstanceOf,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from sparseflow.errors import RecipeError, SparseflowError
from sparseflow.train.allocation import STRATEGIES, Strategy
from sparseflow.train.methods import METHODS
from sparseflow.train.recipe.reading import describe, read_toml
from sparseflow.train.recipe.sections import DataConfig, ModelConfig, RuleConfig
from sparseflow.train.recipe.stages import (
    OWN_KINDS,
    DenseStage,
    LevelsStage,
    MapStage,
    MethodStage,
    RetrainStage,
    Stage,
    stage_class,
)
from sparseflow.train.settings import STRICT


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
        places = [_place(stage) for stage in self.stages]
        if places != sorted(places) or ("retrain" in kinds and not sparsifying):
            raise ValueError(
                f"stages are in the order {kinds}; dense, then one method's, then retrain, then activations and "
                "thresholds, then quantise and post_training is allowed"
            )
        if sparsifying and not self.rules:
            raise ValueError(f"stage {kinds[sparsifying[0]]!r} has no [[rules]]; say which layers it prunes")
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
        content["model"] = None if self.model is None else self.model.name or self.model.factory
        if self.model is not None and self.model.arguments:
            content["arguments"] = self.model.arguments
        content["stages"] = [_counted(s) for s in upto]
        if any(isinstance(s, MethodStage) for s in upto):
            content["rules"] = [_counted(r) for r in self.rules]
            if self.allocation is not None:
                content["allocation"] = self.allocation.identity()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _place(stage: Stage) -> int:
    """Where in the order of stages one belongs."""
    order = (DenseStage, MethodStage, RetrainStage, MapStage, LevelsStage)
    return next(i for i, kind in enumerate(order) if isinstance(stage, kind))


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
    return parse_recipe(read_toml(Path(path)), str(path))


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
    if content.get("allocation") is not None:
        content = content | {"allocation": _read_allocation(content["allocation"], where)}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {describe(error, Recipe, sections=_SECTIONS)}") from None


def _read_stage(content: Any, place: str, where: str) -> Stage:
    if isinstance(content, Stage):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        known = ", ".join((*OWN_KINDS, *METHODS))
        raise RecipeError(f"{where}: {place}.kind: missing or no text; known here: {known}; add it")
    try:
        made = stage_class(content["kind"])
    except SparseflowError as error:
        raise RecipeError(f"{where}: {place}.kind: {error}; {', '.join(OWN_KINDS)} are allowed too") from None
    try:
        return made.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {describe(error, made, place)}") from None


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
        raise RecipeError(f"{where}: {describe(error, made, 'allocation')}") from None


_SECTIONS: dict[str, type[BaseModel]] = {"data": DataConfig, "model": ModelConfig, "rules": RuleConfig}
