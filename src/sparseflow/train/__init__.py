"""Sparsity training: methods for a loop of one's own, a trainer, strict recipes. Needs torch, not TVM."""

from sparseflow.core.prune_result import LayerSparsity, PruneResult
from sparseflow.train.criteria import CRITERIA, Criterion
from sparseflow.train.methods import ADMM, METHODS, AdmmSettings, ByScores, MaskedWeights, Method
from sparseflow.train.models import MODELS
from sparseflow.train.progress import LogProgress, RichProgress, TrainEvent
from sparseflow.train.recipe.recipe import Recipe, load_recipe, parse_recipe
from sparseflow.train.recipe.run import run_recipe
from sparseflow.train.recipe.sources import Workspace
from sparseflow.train.rules import Rule
from sparseflow.train.settings import TrainSettings
from sparseflow.train.trainer import Session, Trainer, evaluate

__all__ = [
    "ADMM",
    "CRITERIA",
    "METHODS",
    "MODELS",
    "AdmmSettings",
    "ByScores",
    "Criterion",
    "LayerSparsity",
    "LogProgress",
    "MaskedWeights",
    "Method",
    "PruneResult",
    "Recipe",
    "RichProgress",
    "Rule",
    "Session",
    "TrainEvent",
    "TrainSettings",
    "Trainer",
    "Workspace",
    "evaluate",
    "load_recipe",
    "parse_recipe",
    "run_recipe",
]
