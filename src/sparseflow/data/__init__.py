"""Data sets that the examples, studies and benchmarks share."""

from sparseflow.data import cifar10, idx, mnist5k  # noqa: F401  (each registers its data sets)
from sparseflow.data.base import DATASETS, ImageData, data_roots, hold_out, load_data
from sparseflow.data.batches import Augment, Batches

__all__ = ["DATASETS", "Augment", "Batches", "ImageData", "data_roots", "hold_out", "load_data"]
