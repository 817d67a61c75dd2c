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
from sparseflow.train.methods.gradual import Gradual, GradualSettings
from sparseflow.train.methods.group_lasso import GroupLasso
from sparseflow.train.methods.hoyer import Hoyer
from sparseflow.train.methods.movement import Movement, MovementSettings
from sparseflow.train.methods.one_shot import ByScores, ByScoresSettings, method_of
from sparseflow.train.methods.penalties import PenaltySettings
from sparseflow.train.methods.ramp import RampSettings
from sparseflow.train.methods.rigl import RigL, RigLSettings
from sparseflow.train.methods.second_order import SecondOrder, SecondOrderSettings
from sparseflow.train.methods.sr_ste import SrSte, SrSteSettings

__all__ = [
    "ADMM",
    "METHODS",
    "AdmmSettings",
    "ByScores",
    "ByScoresSettings",
    "CalibrationSettings",
    "Gradual",
    "GradualSettings",
    "GroupLasso",
    "Hoyer",
    "InTraining",
    "MaskedWeights",
    "Method",
    "MethodSettings",
    "Movement",
    "MovementSettings",
    "Need",
    "OneShot",
    "PenaltySettings",
    "RampSettings",
    "RigL",
    "RigLSettings",
    "SecondOrder",
    "SecondOrderSettings",
    "SrSte",
    "SrSteSettings",
    "TrainingSettings",
    "method_of",
]
