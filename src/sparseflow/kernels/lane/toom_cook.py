"""The matrices of Winograd's algorithm, the points that they interpolate at, and the error to expect.

References
----------
Barabasz, Anderson, Soodhalter & Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks", ACM TOMS 46(4), 2020: how the choice of points decides the error. The matrices are Toom-Cook's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from sparseflow.core.arrays import Array

# The finite points beside infinity, by the number n of products of F(m, r), n = m + r - 1. Pairs of opposite sign halve
# the work of a transform; of those, dyadic numbers that kept the error small in a search (0, 1, -1, 2, -2 has four
# times the error at n = 6).
POINTS: dict[int, tuple[float, ...]] = {
    4: (0.0, 1.0, -1.0),
    5: (0.0, 0.75, -0.75, 1.5),
    6: (0.0, 0.75, -0.75, 1.5, -1.5),
    7: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0),
    8: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}
TAPS = (3, 4)  # r: taps along an axis in one phase; with 2 the transforms take what is saved
SIZES = {r: (1, *(n - r + 1 for n in POINTS if n > r)) for r in TAPS}
ERRORS = {4: 3e-7, 5: 1e-6, 6: 2e-6, 7: 6e-6, 8: 8e-6}  # by n; the larger n of a tile decides
SUMS = {4: 4, 5: 9, 6: 12, 7: 20, 8: 24}  # vector operations of a transform along one axis, about


@dataclass(frozen=True)
class Matrices:
    """F(m, r): outputs = A'[(G w) * (B' x)] for a filter w of r and an input x of n = m + r - 1 values.

    Attributes
    ----------
    outputs : float64 array (m, n)
        A'.
    weights : float64 array (n, r)
        G.
    inputs : float64 array (n, n)
        B'.
    """

    outputs: Array
    weights: Array
    inputs: Array


@functools.cache
def matrices(m: int, r: int) -> Matrices:
    """The matrices of F(m, r); for m = 1 the r products themselves."""
    if m == 1:
        return Matrices(np.ones((1, r)), np.eye(r), np.eye(r))
    n = m + r - 1
    points = np.array(POINTS[n])
    outputs, weights, inputs = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        outputs[:, j] = point ** np.arange(m)
        weights[j] = point ** np.arange(r) / np.prod(point - others)
        inputs[j, :-1] = np.poly(others)[::-1]
    outputs[-1, -1] = weights[-1, -1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    return Matrices(outputs, weights, inputs)


def error_bound(*axes: tuple[int, int]) -> float:
    """The largest error to expect of tiles of m under r taps along each axis, relative to the largest sum of |w||x|."""
    return max(ERRORS[4 if m == 1 else m + r - 1] for m, r in axes)
