"""How far a layer's sums move when its map and its weights are put on levels: measured on positions of real maps."""

from __future__ import annotations

import math

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.calibrated_ranges import Range
from sparseflow.core.element_type import UINT8
from sparseflow.core.steps import filter_steps, on_levels
from sparseflow.kernels.workload import Workload

POSITIONS = 64
"""Of each layer's result, drawn evenly from the calls."""


class LayerError:
    """Gathers what a layer reads at some positions of its result, call after call.

    Parameters
    ----------
    workload : Workload
    weight : ndarray, OIHW
    """

    def __init__(self, workload: Workload, weight: Array) -> None:
        self.workload, self.weight = workload, weight.reshape(workload.weight_shape)
        self._random = np.random.default_rng(0)
        self._seen: list[Array] = []
        self._calls = 0

    def add(self, source: Array) -> None:
        """Looks at one call's input, NCHW or (…, features). Of all calls each is as likely to be kept."""
        w = self.workload
        x = source if w.op == "conv2d" else source.reshape(-1, source.shape[-1]).T[None, :, None, :]
        self._calls += 1
        for i in range(POSITIONS):
            if len(self._seen) < POSITIONS:
                self._seen.append(self._patch(x))
            elif self._random.random() < 1.0 / self._calls:
                self._seen[i] = self._patch(x)

    def _patch(self, x: Array) -> Array:
        """What one filter of each group reads: (groups, channels of a group, kh, kw), zeros beyond the map."""
        w, pick = self.workload, self._random.integers
        image = x[pick(len(x))]
        rows, cols = (
            pick(size) * stride - before + dilation * np.arange(length)
            for size, stride, before, dilation, length in zip(
                (w.out_height, w.out_width), w.stride, w.padding[:2], w.dilation, w.kernel_size, strict=True
            )
        )
        inside = ((rows >= 0) & (rows < w.height))[:, None] & ((cols >= 0) & (cols < w.width))[None, :]
        found = image[:, np.clip(rows, 0, w.height - 1)[:, None], np.clip(cols, 0, w.width - 1)[None, :]]
        return np.where(inside, found, np.float32(0.0)).reshape(w.groups, -1, *w.kernel_size)

    def relative(self, source: Range) -> float:
        """Root mean square of the sums' errors over that of the sums; 0 if all sums are 0.

        Parameters
        ----------
        source : Range
            Of the map's levels.
        """
        steps = filter_steps(self.weight)
        levels = on_levels(self.weight, steps) * steps[:, None, None, None]
        patches = np.array(self._seen)
        rounded = UINT8.covering(source.low, source.high).rounded(patches)
        sums, moved = self._sums(patches, self.weight), self._sums(rounded, levels)
        size = float(np.square(sums).mean())
        return math.sqrt(float(np.square(moved - sums).mean()) / size) if size else 0.0

    def _sums(self, patches: Array, weight: Array) -> Array:
        """Of each position, group and filter of a group."""
        groups = self.workload.groups
        flat = patches.reshape(len(patches), groups, -1)
        filters = weight.reshape(groups, -1, flat.shape[2])
        return np.asarray(np.einsum("pgk,gfk->pgf", flat, filters, optimize=True))
