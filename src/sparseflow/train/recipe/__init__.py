"""Recipes: their schema, what they run on, and running them."""

from sparseflow.train.recipe.recipe import Recipe, load_recipe, parse_recipe
from sparseflow.train.recipe.run import run_recipe
from sparseflow.train.recipe.sources import Sources, Workspace

__all__ = ["Recipe", "Sources", "Workspace", "load_recipe", "parse_recipe", "run_recipe"]
