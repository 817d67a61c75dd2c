"""Making feature maps sparse: activations, regularisers, thresholds fitted to an accuracy budget."""

from sparseflow.train.activations.hooks import MapHook, MapHooks
from sparseflow.train.activations.modules import Activation, FATReLU, TopK, sparsify_activations
from sparseflow.train.activations.regularise import REGULARISERS, MapRegulariser
from sparseflow.train.activations.thresholds import fit_thresholds
from sparseflow.train.activations.track import DensityRamp
from sparseflow.train.activations.watch import map_densities

__all__ = [
    "REGULARISERS",
    "Activation",
    "DensityRamp",
    "FATReLU",
    "MapHook",
    "MapHooks",
    "MapRegulariser",
    "TopK",
    "fit_thresholds",
    "map_densities",
    "sparsify_activations",
]
