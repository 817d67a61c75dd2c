"""Sparse index formats, one a file: exact storage of kernels, and the types of feature-map indices."""

from sparseflow.core.formats.base import FORMATS, ArraySpec, IndexFormat, KernelIndex
from sparseflow.core.formats.bitmap import Bitmap
from sparseflow.core.formats.bsr import BSR
from sparseflow.core.formats.csr import CSR
from sparseflow.core.formats.ell import ELL
from sparseflow.core.formats.feature_map import (
    FEATURE_MAP_FORMATS,
    CompactedPixels,
    FeatureMapFormat,
    FeatureMapIndex,
    PixelBitmap,
)
from sparseflow.core.formats.fkw import FKW
from sparseflow.core.formats.nm import NMFormat
from sparseflow.core.formats.run_length import RunLength
from sparseflow.core.formats.tap_list import TapList

__all__ = [
    "BSR",
    "CSR",
    "ELL",
    "FEATURE_MAP_FORMATS",
    "FKW",
    "FORMATS",
    "ArraySpec",
    "Bitmap",
    "CompactedPixels",
    "FeatureMapFormat",
    "FeatureMapIndex",
    "IndexFormat",
    "KernelIndex",
    "NMFormat",
    "PixelBitmap",
    "RunLength",
    "TapList",
]
