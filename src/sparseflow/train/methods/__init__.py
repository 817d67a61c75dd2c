"""Sparsity methods, one a file."""

from sparseflow.train.methods.admm import ADMM, AdmmSettings
from sparseflow.train.methods.base import METHODS, MaskedWeights, Method
from sparseflow.train.methods.magnitude import Magnitude

__all__ = ["ADMM", "METHODS", "AdmmSettings", "Magnitude", "MaskedWeights", "Method"]
