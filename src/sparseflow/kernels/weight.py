"""A layer's weight as templates read it: dense or as an index, each form made once, when a kernel first asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sparseflow.core.formats import IndexFormat, KernelIndex
from sparseflow.kernels.workload import Array, Layouts, Workload

if TYPE_CHECKING:
    from sparseflow.kernels.template import Candidate, KernelTemplate


class LayerWeight:
    """The weight of one layer, given dense or as an index; the other forms follow from it.

    Parameters
    ----------
    given : ndarray or KernelIndex
        OIHW, or (out, in) of a linear layer.
    shape : tuple of int
        OIHW.
    """

    def __init__(self, given: Array | KernelIndex, shape: tuple[int, int, int, int]) -> None:
        self._given, self.shape = given, shape
        self._indices: dict[tuple[IndexFormat, int], KernelIndex] = {}
        self._joined: dict[str, LayerWeight] = {}
        self._packed: dict[tuple[str, str, Layouts], dict[str, Array]] = {}

    @cached_property
    def dense(self) -> Array:
        """The dense weight, OIHW; an index is decoded at most once."""
        given = self._given
        return (given.decode() if isinstance(given, KernelIndex) else np.asarray(given)).reshape(self.shape)

    def joined(self, workload: Workload) -> LayerWeight:
        """The weight as kernels on slots read it: with the channels of a slot as one int32, where it multiplies them.

        Filters without weights are put behind the last until there are `Workload.padded`.
        """
        spare = workload.padded - self.shape[0]
        if not workload.slotted and not spare:
            return self
        key = f"{workload.weights} {workload.slotted} {spare}"
        if key not in self._joined:
            dense = np.pad(self.dense, ((0, spare), (0, 0), (0, 0), (0, 0)))
            slots = workload.weights.joined(dense, 1) if workload.slotted else dense
            self._joined[key] = LayerWeight(slots, (*slots.shape[:2], *self.shape[2:]))
        return self._joined[key]

    @cached_property
    def nonzeros(self) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(self.dense))

    def index(self, format: IndexFormat, filters: int | None = None) -> KernelIndex:
        """The first ``filters`` filters, or all, in ``format``; equal questions get the same index."""
        count = min(self.shape[0], self.shape[0] if filters is None else filters)
        key = (format, count)
        if key not in self._indices:
            given = self._given
            whole = isinstance(given, KernelIndex) and given.format == format and count == self.shape[0]
            self._indices[key] = given if whole else format.encode(self.dense[:count])  # type: ignore[assignment]
        return self._indices[key]

    def packed(
        self, template: KernelTemplate, workload: Workload, candidate: Candidate, layouts: Layouts
    ) -> Mapping[str, Array]:
        """What ``template`` packs of it; kept, so that planning and lowering share it."""
        key = (workload.key_exact(), candidate.to_json(), layouts)
        if key not in self._packed:
            self._packed[key] = template.pack(workload, candidate, self, layouts)
        return self._packed[key]
