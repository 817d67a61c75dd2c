"""The `Pattern` structure and the choice of its library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Self

import numpy as np

from sparseflow.core.arrays import Array, Keep, Shape, expand_blocks, reduce_blocks, top_k
from sparseflow.core.structures.base import STRUCTURES, GroupStructure
from sparseflow.errors import StructureError

Library = tuple[tuple[int, ...], ...]
"""Patterns as ascending positions ``3·ky + kx`` of a 3×3 kernel."""

CENTRE = 4
POSITIONS = 9
_WEIGHTS = 1 << np.arange(POSITIONS)
_POPCOUNT = np.array([code.bit_count() for code in range(512)])


def natural_patterns(entries: int) -> Library:
    """The patterns of ``entries`` positions with the centre: C(8, entries − 1), 56 of them for 4 entries."""
    others = [position for position in range(POSITIONS) if position != CENTRE]
    return tuple(tuple(sorted((CENTRE, *rest))) for rest in combinations(others, entries - 1))


def choose_library(scores: Array, entries: int = 4, patterns: int = 8) -> Library:
    """The most frequent natural patterns of a weight's kernels.

    A kernel's natural pattern is its centre and the highest-scored of its other eight positions. Kernels
    without any score do not vote; if none votes, the first natural patterns are taken.

    Parameters
    ----------
    scores : ndarray, shape (..., 3, 3)
        ≥ 0.
    entries, patterns : int
        Positions of a pattern, and the largest number of patterns to choose.

    Returns
    -------
    tuple of tuple of int
        Most frequent first, ties in the order of `natural_patterns`.

    References
    ----------
    Niu et al., *PatDNN*, ASPLOS 2020, section 4.1 ("designing the pattern set").
    """
    kernels = scores.reshape(-1, POSITIONS)
    voters = kernels[kernels.max(axis=1) > 0]
    candidates = natural_patterns(entries)
    if not len(voters):
        return candidates[:patterns]
    others = np.delete(np.arange(POSITIONS), CENTRE)
    codes = top_k(voters[:, others], entries - 1) @ _WEIGHTS[others] + _WEIGHTS[CENTRE]
    votes = np.bincount(codes, minlength=512)[library_codes(candidates)]
    order = np.argsort(-votes, kind="stable")[:patterns]
    return tuple(candidates[i] for i in order if votes[i])


def library_covering(keep: Keep, entries: int, limit: int) -> Library | None:
    """At most ``limit`` patterns of ``entries`` positions that contain every kernel of ``keep``, or None.

    Kernels with exactly ``entries`` kept positions are patterns themselves; those with fewer are covered
    greedily.

    Parameters
    ----------
    keep : ndarray of bool, shape (..., 3, 3)

    Returns
    -------
    tuple of tuple of int or None
        The patterns in descending frequency.
    """
    counts = np.bincount(kernel_codes(keep).reshape(-1), minlength=512)
    counts[0] = 0
    used = np.flatnonzero(counts)
    if not len(used):
        return natural_patterns(entries)[:1]
    if _POPCOUNT[used].max() > entries:
        return None
    full = used[_POPCOUNT[used] == entries]
    chosen = [int(code) for code in full[np.argsort(-counts[full], kind="stable")]]
    natural = library_codes(natural_patterns(entries))
    every = np.concatenate([natural, np.setdiff1d(np.flatnonzero(entries == _POPCOUNT), natural)])
    open_codes = used[_first_containing(np.array(chosen, dtype=np.int64))[used] < 0]
    while len(open_codes) and len(chosen) < limit:
        contained = (open_codes[None, :] & ~every[:, None]) == 0
        best = int(every[np.argmax(contained @ counts[open_codes])])
        chosen.append(best)
        open_codes = open_codes[(open_codes & ~best) != 0]
    if len(open_codes) or len(chosen) > limit:
        return None
    return tuple(tuple(p for p in range(POSITIONS) if code >> p & 1) for code in chosen)


def kernel_codes(keep: Keep) -> Array:
    """The kept positions of each kernel as a 9-bit number, bit ``3·ky + kx``; (..., 3, 3) → (...)."""
    codes: Array = keep.reshape(*keep.shape[:-2], POSITIONS) @ _WEIGHTS
    return codes


def library_codes(library: Library) -> Array:
    """Each pattern as a 9-bit number; shape (patterns,)."""
    return np.array([sum(1 << p for p in pattern) for pattern in library], dtype=np.int64)


def assign_patterns(keep: Keep, library: Library) -> Array:
    """The first pattern of ``library`` that contains each kernel, −1 if none does; (..., 3, 3) → (...)."""
    assigned: Array = _first_containing(library_codes(library))[kernel_codes(keep)]
    return assigned


def _first_containing(codes: Array) -> Array:
    if not len(codes):
        return np.full(512, -1)
    contained = (np.arange(512)[:, None] & ~codes[None, :]) == 0
    return np.where(contained.any(axis=1), contained.argmax(axis=1), -1)


@STRUCTURES.register("pattern")
@dataclass(frozen=True)
class Pattern(GroupStructure):
    """Every 3×3 kernel keeps ``entries`` positions in one of a few patterns; density is entries/9.

    Attributes
    ----------
    entries : int
        Kept positions of a kernel, 1 to 8.
    library : tuple of tuple of int, optional
        The patterns allowed, each as ascending positions ``3·ky + kx``. None: `choose_library` takes them
        from the scores, and any library of at most ``patterns`` patterns is admitted.
    patterns : int
        Largest number of patterns when the library is chosen.
    shared : (int, int)
        Filters and input channels whose kernels share a pattern: kernels on maps whose channels lie in slots leave
        out what all channels of a slot and all filters of a block lack.

    References
    ----------
    Ma et al., *PCONV*, AAAI 2020, section 3; Niu et al., *PatDNN*, ASPLOS 2020, section 4.1.
    """

    entries: int = 4
    library: Library | None = None
    patterns: int = 8
    shared: tuple[int, int] = (1, 1)

    name: ClassVar[str] = "pattern"
    grammar: ClassVar[str] = (
        "pattern:ENTRIES, pattern:ENTRIES:PATTERNS or pattern:ENTRIES:=0134/1345/..., each with /FILTERSxCHANNELS"
    )
    example: ClassVar[str] = "pattern:4"

    def __post_init__(self) -> None:
        filters, channels = self.shared
        self._check_positive(entries=self.entries, patterns=self.patterns, filters=filters, channels=channels)
        if self.entries >= POSITIONS:
            raise StructureError(
                f"Pattern: {self.entries} entries of a 3x3 kernel; 1 to 8 can be kept, as in pattern:4"
            )
        for pattern in self.library if self.library is not None else ():
            if len(pattern) != self.entries or sorted(set(pattern) & set(range(POSITIONS))) != list(pattern):
                raise StructureError(
                    f"Pattern: library pattern {pattern} is not {self.entries} ascending positions from 0 to 8; write "
                    "it like (0, 1, 3, 4)"
                )
        if self.library is not None and (not self.library or len(set(self.library)) != len(self.library)):
            raise StructureError(
                "Pattern: the library is empty or repeats a pattern; give each pattern once, or None to choose them"
            )

    @property
    def brief(self) -> str:
        return f"pattern:{self.entries}{self._sharing}"

    @property
    def _sharing(self) -> str:
        return "" if self.shared == (1, 1) else "/{}x{}".format(*self.shared)

    @property
    def fixed_density(self) -> float:
        return self.entries / POSITIONS

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if tuple(shape[2:]) != (3, 3):
            raise StructureError(
                f"{self}: a weight of shape {tuple(shape)} has no 3x3 kernels; patterns are for 3x3 convolutions, use "
                "connectivity, block or unstructured here"
            )

    def group(self) -> Shape:
        return (*self.shared, 3, 3)

    def select_batch(self, scores: Array, density: float) -> Keep:
        keep = np.empty(scores.shape, dtype=np.bool_)
        together = (*self.shared, 1, 1)
        for i, weight in enumerate(scores):
            kernels = reduce_blocks(np.add, weight, together)
            library = self.library or choose_library(kernels, self.entries, self.patterns)
            table = self._table(library)
            sums = kernels.reshape(-1, POSITIONS) @ table.T.astype(weight.dtype)
            keep[i] = expand_blocks(table[sums.argmax(axis=1)].reshape(kernels.shape), together, weight.shape)
        return keep

    def cover_batch(self, keep: Keep) -> Keep | None:
        covered = np.empty_like(keep)
        together = (*self.shared, 1, 1)
        for i, weight in enumerate(keep):
            kernels = reduce_blocks(np.logical_or, weight, together)
            library = self.library or library_covering(kernels, self.entries, self.patterns)
            if library is None:
                return None
            assigned = assign_patterns(kernels, library)
            if assigned.min() < 0:
                return None
            table = self._table(library)[assigned].reshape(kernels.shape)
            covered[i] = expand_blocks(table, together, weight.shape)
        return covered

    @staticmethod
    def _table(library: Library) -> Keep:
        table = np.zeros((len(library), POSITIONS), dtype=np.bool_)
        for row, pattern in zip(table, library, strict=True):
            row[list(pattern)] = True
        return table

    def __str__(self) -> str:
        if self.library is not None:
            text = "/".join("".join(str(p) for p in pattern) for pattern in self.library)
            return f"pattern:{self.entries}:={text}{self._sharing}"
        return f"pattern:{self.entries}" + ("" if self.patterns == 8 else f":{self.patterns}") + self._sharing

    @classmethod
    def from_text(cls, arguments: str) -> Self:
        if not arguments:
            return cls()
        text, shared = arguments, (1, 1)
        sharing = re.fullmatch(r"(.*)/(\d{1,9}x\d{1,9})", arguments)
        if sharing:
            text = sharing[1]
            filters, channels = cls._sizes(arguments, sharing[2], "x", 2)
            shared = filters, channels
        entries, equals, library = text.partition(":=")
        if equals and not (library.replace("/", "").isdecimal() and library.isascii()):
            raise cls._syntax_error(arguments)
        sizes = cls._sizes(arguments, entries, ":", *((1,) if equals else (1, 2)))
        if equals:
            given = tuple(tuple(int(digit) for digit in part) for part in library.split("/"))
            return cls(sizes[0], given, shared=shared)
        patterns = sizes[1] if len(sizes) > 1 else cls.patterns
        return cls(sizes[0], None, patterns, shared)
