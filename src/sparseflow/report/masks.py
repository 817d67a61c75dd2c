"""Masks as small pictures: 1 a weight that is kept, 0 one that is not, NaN a gap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparseflow.report.document import Values


def kernels(keep: npt.NDArray[np.bool_], filters: int = 16, channels: int = 16) -> Values:
    """The first kernels of a convolution as a grid: a row a filter, a column a channel, a k×k cell each.

    Parameters
    ----------
    keep : ndarray of bool, (out, in, kh, kw)
    filters, channels : int
        Size of the part that is shown.

    Returns
    -------
    ndarray of float32, (filters*(kh+1)-1, channels*(kw+1)-1)
        With a gap of one pixel between cells.
    """
    part = keep[:filters, :channels]
    out, in_, height, width = part.shape
    grid = np.full((out, height + 1, in_, width + 1), np.nan, dtype=np.float32)
    grid[:, :height, :, :width] = part.transpose(0, 2, 1, 3)
    return grid.reshape(out * (height + 1), in_ * (width + 1))[:-1, :-1]


def matrix(keep: npt.NDArray[np.bool_]) -> Values:
    """The whole weight as a matrix, (out, in·kh·kw): a row a filter.

    Returns
    -------
    ndarray of float32, (out, in*kh*kw)
    """
    return keep.reshape(len(keep), -1).astype(np.float32)
