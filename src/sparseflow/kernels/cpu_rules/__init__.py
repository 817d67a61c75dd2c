"""Schedules for operators without a kernel of their own: vectors, cached rows, threads for large work."""

from .program import Unsuitable
from .rules import RULES, Resources, Rule

__all__ = ["RULES", "Resources", "Rule", "Unsuitable"]
