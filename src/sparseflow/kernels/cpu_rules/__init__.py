"""Schedules for operators without a kernel of their own: vectors, cached rows, threads for large work."""

from .program import Unsuitable
from .rules import RULES, Cpu, Rule

__all__ = ["RULES", "Cpu", "Rule", "Unsuitable"]
