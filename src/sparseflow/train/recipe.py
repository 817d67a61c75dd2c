"""Recipes: ordered training stages and per-layer rules, strict, from TOML."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from sparseflow.core.structures import parse_sparsify
from sparseflow.errors import RecipeError, SparseflowError
from sparseflow.train.methods import AdmmSettings
from sparseflow.train.rules import Rule
from sparseflow.train.trainer import TrainSettings

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataConfig(BaseModel):
    """``[data]``: a registered data set and how it is fed."""

    model_config = _STRICT
    name: str
    folder: str | None = None
    batch_size: int = Field(default=128, ge=1)
    flip: Literal["none", "random", "alternate"] = "none"
    crop: int = Field(default=0, ge=0)


class ModelConfig(BaseModel):
    """``[model]``: a registered model and its builder's arguments; ``weights`` is a state dictionary to start from."""

    model_config = _STRICT
    name: str
    weights: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)


class RuleConfig(BaseModel):
    """``[[rules]]``: layers and what becomes of them; the first rule that matches a layer counts."""

    model_config = _STRICT
    layers: str
    sparsify: str
    include: tuple[Literal["stem", "depthwise", "classifier"], ...] = Field(default=(), strict=False)

    @field_validator("sparsify")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            if text != "dense":
                parse_sparsify(text)
        except SparseflowError as error:
            raise ValueError(str(error)) from None
        return text

    def rule(self) -> Rule:
        """As the methods take it."""
        if self.sparsify == "dense":
            return Rule(self.layers, None, 1.0, self.include)
        spec = parse_sparsify(self.sparsify)
        return Rule(self.layers, spec.structure, spec.density, self.include)


class _Trained(BaseModel):
    """What every stage that trains has; see `TrainSettings`."""

    model_config = _STRICT
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    evaluate_every: int = Field(default=1, ge=1)
    freeze: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _warm_in_time(self) -> _Trained:
        if self.warmup > self.epochs:
            raise ValueError(f"warmup is {self.warmup} epochs, but the stage has {self.epochs}")
        return self

    def settings(self) -> TrainSettings:
        """As the trainer takes them."""
        return TrainSettings(**{name: getattr(self, name) for name in _Trained.model_fields})


class DenseStage(_Trained):
    """``kind = "dense"``: ordinary training."""

    kind: Literal["dense"]


class AdmmStage(_Trained):
    """``kind = "admm"``: training with the ADMM penalty; ends with the masks."""

    kind: Literal["admm"]
    rho: float = Field(default=1e-4, gt=0)
    rho_factor: float = Field(default=10.0, ge=1)
    rho_steps: int = Field(default=4, ge=1)
    update_every: int = Field(default=1, ge=1)

    def admm(self) -> AdmmSettings:
        """As the method takes them."""
        return AdmmSettings(self.epochs, self.rho, self.rho_factor, self.rho_steps, self.update_every)


class MagnitudeStage(BaseModel):
    """``kind = "magnitude"``: one-shot masks by magnitude, no training."""

    model_config = _STRICT
    kind: Literal["magnitude"]


class RetrainStage(_Trained):
    """``kind = "retrain"``: training with the removed weights held at zero."""

    kind: Literal["retrain"]


Stage = Annotated[DenseStage | AdmmStage | MagnitudeStage | RetrainStage, Field(discriminator="kind")]
TrainedStage = DenseStage | AdmmStage | RetrainStage


class Recipe(BaseModel):
    """Ordered training stages and per-layer rules.

    ``data`` and ``model`` may be left out when they are given to `run_recipe` as Python objects.
    """

    model_config = _STRICT
    name: str
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    data: DataConfig | None = None
    model: ModelConfig | None = None
    rules: tuple[RuleConfig, ...] = Field(default=(), strict=False)
    stages: tuple[Stage, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Recipe:
        kinds = [stage.kind for stage in self.stages]
        sparsifying = [i for i, kind in enumerate(kinds) if kind in ("admm", "magnitude")]
        if len(sparsifying) > 1:
            raise ValueError(f"stages {kinds} hold {len(sparsifying)} of admm and magnitude; one is allowed")
        first = sparsifying[0] if sparsifying else len(kinds)
        if "retrain" in kinds[:first] or "dense" in kinds[first:]:
            raise ValueError(
                f"stages are in the order {kinds}; dense, then admm or magnitude, then retrain is allowed"
            )
        if sparsifying and not self.rules:
            raise ValueError(f"stage {kinds[first]!r} has no [[rules]]; say which layers it prunes")
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
        if any(s.kind in ("admm", "magnitude") for s in upto):
            content["rules"] = [r.model_dump(mode="json") for r in self.rules]
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
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise RecipeError(f"{where}: {_describe(details[0])}{more}") from None


_CONFIGS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "rules": RuleConfig,
    "dense": DenseStage,
    "admm": AdmmStage,
    "magnitude": MagnitudeStage,
    "retrain": RetrainStage,
}


def _describe(detail: ErrorDetails) -> str:
    """One line: the key's path, what was found, what is allowed."""
    location = list(detail["loc"])
    section: type[BaseModel] = Recipe
    path = ""
    for i, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif location[:1] == ["stages"] and i == 2 and part in _CONFIGS:
            section = _CONFIGS[part]  # the union's tag is no key
        else:
            section = _CONFIGS.get(part, section) if i == 0 else section
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
