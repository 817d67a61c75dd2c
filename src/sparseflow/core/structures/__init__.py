"""The forms that a layer's zeros can take, one a file."""

from sparseflow.core.structures.base import STRUCTURES, GroupStructure, Structure, UnitStructure
from sparseflow.core.structures.block import Block
from sparseflow.core.structures.block_punched import BlockPunched
from sparseflow.core.structures.channel import Channel
from sparseflow.core.structures.column import Column
from sparseflow.core.structures.connectivity import Connectivity
from sparseflow.core.structures.dense_blocks import DenseBlocks
from sparseflow.core.structures.filter import Filter
from sparseflow.core.structures.nm import NM
from sparseflow.core.structures.parse import SparsifySpec, parse_sparsify, parse_structure
from sparseflow.core.structures.pattern import Pattern, choose_library, natural_patterns
from sparseflow.core.structures.product import PatternConnectivity, Product, ProductStructure
from sparseflow.core.structures.unstructured import Unstructured

__all__ = [
    "NM",
    "STRUCTURES",
    "Block",
    "BlockPunched",
    "Channel",
    "Column",
    "Connectivity",
    "DenseBlocks",
    "Filter",
    "GroupStructure",
    "Pattern",
    "PatternConnectivity",
    "Product",
    "ProductStructure",
    "SparsifySpec",
    "Structure",
    "UnitStructure",
    "Unstructured",
    "choose_library",
    "natural_patterns",
    "parse_sparsify",
    "parse_structure",
]
