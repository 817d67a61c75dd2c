"""Sparsity methods, one a file; importing this package registers them all."""

from sparseflow.train.methods.admm import ADMM, AdmmSettings
from sparseflow.train.methods.base import (
    METHODS,
    InTraining,
    MaskedWeights,
    Method,
    MethodSettings,
    Need,
    OneShot,
)
from sparseflow.train.methods.gradual import Gradual
from sparseflow.train.methods.group_lasso import GroupLasso
from sparseflow.train.methods.hoyer import Hoyer
from sparseflow.train.methods.movement import Movement
from sparseflow.train.methods.one_shot import ByScores, method_of
from sparseflow.train.methods.ramp import RampSettings
from sparseflow.train.methods.rigl import RigL, RigLSettings
from sparseflow.train.methods.second_order import SecondOrder
from sparseflow.train.methods.sr_ste import SrSte

__all__ = [
    "ADMM",
    "METHODS",
    "AdmmSettings",
    "ByScores",
    "Gradual",
    "GroupLasso",
    "Hoyer",
    "InTraining",
    "MaskedWeights",
    "Method",
    "MethodSettings",
    "Movement",
    "Need",
    "OneShot",
    "RampSettings",
    "RigL",
    "RigLSettings",
    "SecondOrder",
    "SrSte",
    "method_of",
]
