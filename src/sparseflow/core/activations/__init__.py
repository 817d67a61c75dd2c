"""Activations, one a file: what each computes, its vector code, and the forms in which importers write it.

They stand in ``core`` because training, kernels, passes and frontends all read them, and only this room may be imported
by all of these. Nothing here needs TVM or torch: vector code is written against `Vectors`, which kernels provide.
"""

from sparseflow.core.activations.base import ACTIVATIONS, Activation, Vectors, fused, keeping_zero

__all__ = ["ACTIVATIONS", "Activation", "Vectors", "fused", "keeping_zero"]
