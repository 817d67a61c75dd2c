"""Low precision: levels of weights and ranges of maps, learned in training or found after it."""

from sparseflow.core.calibrated_ranges import RANGES
from sparseflow.core.map_ranges import MapRange, MapRanges
from sparseflow.train.levels import LEVELS, Levels
from sparseflow.train.quantise.maps import MapLevels, rounded_maps, sample_range
from sparseflow.train.quantise.network import (
    LearnedQuantisation,
    LearnSettings,
    RoundSettings,
    round_network,
)
from sparseflow.train.quantise.weights import LearnedSteps

__all__ = [
    "LEVELS",
    "RANGES",
    "LearnSettings",
    "LearnedQuantisation",
    "LearnedSteps",
    "Levels",
    "MapLevels",
    "MapRange",
    "MapRanges",
    "RoundSettings",
    "round_network",
    "rounded_maps",
    "sample_range",
]
