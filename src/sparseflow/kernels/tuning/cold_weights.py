"""Weights where a network finds them: in a far cache or in memory, as the weights of all other layers came between."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparseflow.kernels.target.base import Caches
from sparseflow.kernels.workload import Array

LINE = 64  # bytes of a cache line


def bounds(caches: Caches) -> tuple[int, int]:
    """Bytes of weights that stay in the L2 cache from call to call, and bytes after which no cache holds any."""
    return caches.l2 // 4, 8 * caches.l3


def rounded(nbytes: int, caches: Caches) -> int:
    """The next power of two, so that networks of about one size share what was measured, within `bounds`; 0 below."""
    near, far = bounds(caches)
    return 0 if nbytes < near else min(far, 1 << (nbytes - 1).bit_length())


class ColdWeights:
    """Called before a kernel: reads ``nbytes`` of other data, then the maps, as the layers before just wrote them.

    Parameters
    ----------
    nbytes : int
    maps : sequence of tensors
        The kernel's feature maps, the input last.
    """

    def __init__(self, nbytes: int, maps: Sequence[Any]) -> None:
        self._read = (_others(nbytes), *(np.from_dlpack(m).reshape(-1) for m in maps))

    def __call__(self, *_arguments: Any) -> None:
        for array in self._read:
            array[:: LINE // array.itemsize].sum()


@functools.lru_cache(maxsize=1)
def _others(nbytes: int) -> Array:
    return np.ones(nbytes // 8)  # not zeros: all their pages would be one
