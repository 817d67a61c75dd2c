"""What one level of a filter's weights is worth, when they are stored in few bits."""

from __future__ import annotations

import numpy as np

from sparseflow.core.arrays import Array

LARGEST = 127
"""Levels of 8 bits that are made here go from minus this to this, so that 0 is in their middle; some that are found go
one further down."""
TOLERANCE = 2.0**-10
"""In levels: how far weights may lie beside one and count as lying on it."""
SAMPLE = 32


def filter_steps(weight: Array, largest: int = LARGEST) -> Array:
    """The step of each filter: float32 (filters,), 1 where all weights are zeros.

    Weights that lie on evenly spaced levels through zero, from ``-largest - 1`` to ``largest``, as training for levels
    and quantisers leave them, keep theirs; others get the step with which their largest is the last level.

    Parameters
    ----------
    weight : ndarray, shape (filters, ...)
    largest : int
    """
    flat = np.asarray(weight, np.float64).reshape(len(weight), -1)
    most = np.abs(flat).max(axis=1, initial=0.0)
    steps = np.where(most > 0, most / largest, 1.0)
    order = np.argsort(-np.abs(flat), axis=1)[:, :SAMPLE]  # the largest say most
    sample = np.take_along_axis(flat, order, axis=1)
    open_ = most > 0
    above = flat.max(axis=1, initial=0.0)
    for count in (*range(1, largest), largest + 1):
        step = np.where(open_, most / count, 1.0)
        near = open_ & (_away(sample, step).max(axis=1, initial=0.0) <= TOLERANCE)
        near &= above <= (largest + TOLERANCE) * step
        for f in np.flatnonzero(near):
            if _away(flat[f : f + 1], step[f : f + 1]).max() <= TOLERANCE:
                steps[f], open_[f] = step[f], False
    return steps.astype(np.float32)


def _away(values: Array, step: Array) -> Array:
    """How many levels each value lies beside the nearest."""
    levels = values / step[:, None]
    return np.asarray(np.abs(levels - np.rint(levels)))


def on_levels(weight: Array, steps: Array, largest: int = LARGEST) -> Array:
    """The nearest level of each weight, as float32 whole numbers; same shape."""
    by_filter = np.asarray(steps).reshape(-1, *[1] * (np.ndim(weight) - 1))
    return np.asarray(np.clip(np.rint(weight / by_filter), -largest - 1, largest), np.float32)
