"""The `FKW` format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparseflow.core.arrays import Array, Shape, smallest_uint
from sparseflow.core.formats.base import (
    FORMATS,
    ArraySpec,
    IndexFormat,
    KernelIndex,
    check_ascending,
    check_pointers,
    segment_of,
)
from sparseflow.core.structures.pattern import POSITIONS, assign_patterns, library_covering
from sparseflow.errors import FormatError

MAX_PATTERNS = 126
"""All patterns of 4 entries of a 3×3, C(9, 4); no other number of entries has more."""


@FORMATS.register("fkw")
@dataclass(frozen=True)
class FKW(IndexFormat):
    """Filter-kernel-weight: patterned 3×3 kernels, filters reordered, kernels grouped by pattern.

    Filters are ordered by their number of kernels, then by how many they have of each pattern, so that
    neighbours run the same loops. Inside a filter the kernels of pattern 0 come first, then those of pattern
    1, …; inside a pattern the channels ascend. All-zero kernels are not stored.

    arrays: ``reorder`` (F,) original filter of each place; ``indptr`` int32 (F + 1,) first kernel of a
    filter; ``stride`` (F, P + 1) first kernel of each pattern, counted from the filter's first; ``indices``
    (kernels,) input channels; ``patterns`` uint8 (P, entries) the library as positions ``3·ky + kx``;
    ``data`` (kernels, entries). ``reorder``, ``stride`` and ``indices`` are of the smallest unsigned type
    that fits. Bits: κ(entries·v + i) + F(P + 1)s + 32(F + 1) + F·r, and 8·P·entries for the library.

    Attributes
    ----------
    entries : int
        Positions of a pattern.

    References
    ----------
    Niu et al., *PatDNN*, ASPLOS 2020, section 5.2 (filter kernel reorder) and 5.3 (FKW storage).
    """

    entries: int = 4

    name: ClassVar[str] = "fkw"

    def __post_init__(self) -> None:
        if not 1 <= self.entries < POSITIONS:
            raise FormatError(
                f"FKW: {self.entries} entries of a 3x3 kernel; 1 to 8 can be stored, 4 is usual"
            )

    @property
    def label(self) -> str:
        return f"{self.name}(entries={self.entries})"

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if tuple(shape[2:]) != (3, 3):
            raise FormatError(
                f"{self.label}: a weight of shape {tuple(shape)} has no 3x3 kernels; use another format"
            )

    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        filters, channels = shape[:2]
        return (
            ArraySpec("reorder", smallest_uint(filters - 1), (filters,), "index"),
            ArraySpec("indptr", "int32", (filters + 1,), "index"),
            ArraySpec("stride", smallest_uint(channels), (filters, "patterns + 1"), "index"),
            ArraySpec("indices", smallest_uint(channels - 1), ("kernels",), "index"),
            ArraySpec("patterns", "uint8", ("patterns", self.entries), "index"),
            ArraySpec("data", str(dtype), ("kernels", self.entries), "value"),
        )

    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        filters, channels = weight.shape[:2]
        keep = weight != 0
        library = library_covering(keep, self.entries, MAX_PATTERNS)
        if library is None:
            raise FormatError(
                f"{self.label}: a weight of shape {weight.shape} has kernels with more than {self.entries} "
                "non-zeros; prune it to patterns first or use another format"
            )
        alive = keep.any(axis=(2, 3))
        pattern = assign_patterns(keep, library)
        places = np.where(alive, np.arange(filters)[:, None] * len(library) + pattern, -1)
        counts = np.bincount(places[alive], minlength=filters * len(library)).reshape(filters, -1)
        keys = [*counts.T[::-1], counts.sum(axis=1)]
        reorder = np.lexsort(keys)
        counts = counts[reorder]
        row, channel = np.nonzero(alive[reorder])
        kernel_pattern = pattern[reorder][row, channel]
        order = np.lexsort((channel, kernel_pattern, row))
        row, channel, kernel_pattern = row[order], channel[order], kernel_pattern[order]
        patterns = np.array(library, dtype=np.uint8)
        kernels = weight.reshape(filters, channels, POSITIONS)[reorder[row], channel]
        specs = {spec.name: spec.dtype for spec in self.array_specs(weight.shape, weight.dtype)}
        starts = np.concatenate([np.zeros((filters, 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
        return {
            "reorder": reorder.astype(specs["reorder"]),
            "indptr": np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int32),
            "stride": starts.astype(specs["stride"]),
            "indices": channel.astype(specs["indices"]),
            "patterns": patterns,
            "data": np.take_along_axis(kernels, patterns[kernel_pattern].astype(np.int64), axis=1),
        }

    def decode_arrays(self, index: KernelIndex) -> Array:
        arrays = index.arrays
        filters, channels = index.shape[:2]
        row = arrays["reorder"].astype(np.int64)[segment_of(arrays["indptr"])]
        counts: Array = np.diff(arrays["stride"].astype(np.int64), axis=1).reshape(-1)
        kernel_pattern = np.repeat(np.tile(np.arange(len(arrays["patterns"])), filters), counts)
        weight = np.zeros((filters, channels, POSITIONS), index.dtype)
        where = arrays["patterns"][kernel_pattern].astype(np.int64)
        weight[row[:, None], arrays["indices"].astype(np.int64)[:, None], where] = arrays["data"]
        return weight.reshape(index.shape)

    def check_contents(self, index: KernelIndex) -> None:
        arrays = index.arrays
        filters = index.shape[0]
        if len(arrays["patterns"]) + 1 != arrays["stride"].shape[1]:
            raise self.refuse(
                index,
                "stride",
                f"is for {arrays['stride'].shape[1] - 1} patterns",
                "one column per pattern and one",
            )
        if not np.array_equal(np.sort(arrays["reorder"]), np.arange(filters)):
            raise self.refuse(index, "reorder", "repeats a filter", f"it must order all {filters} filters")
        library = arrays["patterns"].astype(np.int64)
        if library.size and (library.max() >= POSITIONS or (np.diff(library, axis=1) <= 0).any()):
            raise self.refuse(index, "patterns", "has a row that is no pattern", "positions rise from 0 to 8")
        check_pointers(index, "indptr", len(arrays["indices"]))
        stride = arrays["stride"].astype(np.int64)
        counts = np.diff(stride, axis=1)
        ends = np.diff(arrays["indptr"])
        if (stride[:, 0] != 0).any() or (counts < 0).any() or (stride[:, -1] != ends).any():
            raise self.refuse(
                index,
                "stride",
                "does not split each filter's kernels",
                "rows rise from 0 to the filter's kernels",
            )
        segments = np.concatenate([[0], np.cumsum(counts.reshape(-1))])
        check_ascending(index, segments, "indices", index.shape[1])

    @classmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        return (cls(4), cls(2))
