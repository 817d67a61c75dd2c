"""From sums of products of levels to the result: the operands ``start`` and ``rescale`` of a quantised layer.

A map's level q stands for ``s * (q - z)``, a weight's for ``step * w``. Sums begin at ``start``, which holds the bias
and takes away what the input's zero point adds; each is multiplied by its filter's factor of ``rescale`` and rounded
once.

References
----------
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 2.2 to 2.4, with the factor in float32.
"""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.element_type import UINT8, ElementType, Quantised
from sparseflow.errors import CompileError
from sparseflow.kernels.workload import Array, Workload

TAIL = ("residual", "shift", "inverse", "zero", "source inverse", "source zero")
"""What ``rescale`` holds behind the filters' factors: what one level of the residual is worth; what is added to each
sum; the levels in 1.0, and the level of 0, of the result, for activations that are computed on the numbers; the same
two of the input, for kernels that round it themselves."""
START_BITS = 20
"""Bits that the bias of a filter without weights gets."""


def rescale_size(workload: Workload) -> int:
    """Elements of the operand ``rescale``."""
    return workload.padded + len(TAIL)


def saturates(workload: Workload) -> bool:
    """Whether the activation is what rounding to the result's levels does anyway, so that it costs nothing."""
    return isinstance(workload.result, Quantised) and ACTIVATIONS[workload.activation].clamps


def rescaling(
    workload: Workload,
    levels: Array,
    step: Array,
    bias: Array,
    source: Quantised,
    result: ElementType,
    residual: ElementType | None,
) -> dict[str, Array]:
    """The operands of a layer.

    Parameters
    ----------
    workload : Workload
    levels : ndarray
        The weight's, OIHW.
    step, bias : ndarray
        What a level is worth, and what is added: both of each filter.
    source, result, residual : ElementType
        Of the maps.

    Returns
    -------
    dict
        ``start``, int32 (padded filters,), and ``rescale``, float32 (padded filters + 6,).

    Raises
    ------
    CompileError
        If a bias is too large for the sums.
    """
    sums = levels.reshape(len(levels), -1).sum(axis=1, dtype=np.float64)
    scale = source.scale * np.asarray(step, np.float64)
    empty = sums_of_magnitudes(levels) == 0
    scale = np.where(empty, np.maximum(np.abs(bias), 1e-30) / 2.0**START_BITS, scale)
    start = np.rint(bias / scale) - (source.zero_point - workload.target.taken_from_levels(UINT8)) * sums
    if np.abs(start).max(initial=0.0) >= 2.0**31:
        raise CompileError("a bias is more than 2**31 products of levels; keep this layer in float32")
    inverse, zero = 1.0, 0.0
    if isinstance(result, Quantised):
        inverse, zero = 1.0 / result.scale, float(result.zero_point)
    unit = inverse if saturates(workload) else 1.0
    worth = from_zero = 0.0
    if residual is not None:
        worth = unit
        if isinstance(residual, Quantised):
            worth, from_zero = residual.scale * unit, -residual.zero_point * residual.scale * unit
    shift = from_zero + (zero if saturates(workload) else 0.0)
    tail = [worth, shift, inverse, zero, 1.0 / source.scale, source.zero_point]
    spare = (0, workload.padded - workload.filters)
    return {
        "start": np.pad(start, spare).astype(np.int32),
        "rescale": np.concatenate([np.pad(scale * unit, spare), tail]).astype(np.float32),
    }


def sums_of_magnitudes(levels: Array) -> Array:
    """Of each filter."""
    return np.asarray(np.abs(levels.reshape(len(levels), -1)).sum(axis=1))


def bounded_step(step: Array, bias: Array, source_scale: float) -> Array:
    """``step``, as large as the bias needs to fit the sums."""
    return np.maximum(step, np.abs(bias) / (source_scale * 2.0**28)).astype(np.float32)
