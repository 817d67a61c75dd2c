"""How dense each layer may stay: strategies that share a budget out among the layers, one a file."""

from sparseflow.train.allocation.apply import allocate, record, recorded, resolved
from sparseflow.train.allocation.base import STRATEGIES, Assigned, Problem, Strategy, slots_of
from sparseflow.train.allocation.erk import ErdosRenyiKernel
from sparseflow.train.allocation.global_magnitude import GlobalMagnitude
from sparseflow.train.allocation.knapsack import Budget, solve
from sparseflow.train.allocation.latency import LatencyAware
from sparseflow.train.allocation.loss_increase import ESTIMATES
from sparseflow.train.allocation.sensitivity import Sensitivity
from sparseflow.train.allocation.uniform import Uniform

__all__ = [
    "ESTIMATES",
    "STRATEGIES",
    "Assigned",
    "Budget",
    "ErdosRenyiKernel",
    "GlobalMagnitude",
    "LatencyAware",
    "Problem",
    "Sensitivity",
    "Strategy",
    "Uniform",
    "allocate",
    "record",
    "recorded",
    "resolved",
    "slots_of",
    "solve",
]
