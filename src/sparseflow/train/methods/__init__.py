"""Sparsity methods, one a file; importing this package registers them all."""

from sparseflow.train.methods.admm import ADMM, AdmmSettings
from sparseflow.train.methods.base import (
    METHODS,
    CalibrationSettings,
    InTraining,
    MaskedWeights,
    Method,
    MethodSettings,
    Need,
    OneShot,
    TrainingSettings,
)
from sparseflow.train.methods.magnitude import Magnitude

__all__ = [
    "ADMM",
    "METHODS",
    "AdmmSettings",
    "CalibrationSettings",
    "InTraining",
    "Magnitude",
    "MaskedWeights",
    "Method",
    "MethodSettings",
    "Need",
    "OneShot",
    "TrainingSettings",
]
