"""Recipes: their schema, what they run on, and running them."""
