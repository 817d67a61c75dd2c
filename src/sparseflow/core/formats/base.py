"""What every index format answers: what its arrays are, exact encode and decode, the bytes of each part."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from sparseflow.core.arrays import Array, Shape
from sparseflow.errors import FormatError
from sparseflow.registry import Registry


@dataclass(frozen=True)
class ArraySpec:
    """One array of a format.

    Attributes
    ----------
    name : str
    dtype : str
        NumPy name of its element type.
    shape : tuple of int or str
        A string is an extent that only the data tells; equal strings are equal extents.
    role : str
        ``value`` for stored weights, ``index`` for all that says where they are.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Literal["value", "index"]


class IndexFormat(ABC):
    """A way to store the non-zeros of a kernel. Subclasses are frozen dataclasses, registered in `FORMATS`.

    Invariant: ``decode(encode(w)) == w`` for every ``w`` that `check` accepts (negative zero is a zero), and
    all sizes count padding and pointers.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """The name with its parameters, as ``tap-list(rows=4)``."""
        return self.name

    def check(self, shape: Shape) -> None:
        """Nothing, if weights of ``shape`` can be stored.

        Raises
        ------
        FormatError
            With the reason, if not.
        """
        if not 2 <= len(shape) <= 5 or min(shape) < 1:
            raise FormatError(
                f"{self.label}: a weight of shape {tuple(shape)} is neither (out, in) nor (out, in, "
                "*kernel) with "
                "positive sizes; reshape it first"
            )

    @abstractmethod
    def array_specs(self, shape: Shape, dtype: np.dtype[Any]) -> tuple[ArraySpec, ...]:
        """The arrays that a weight of ``shape`` and ``dtype`` is stored in."""

    def encode(self, weight: Array) -> KernelIndex:
        """``weight`` in this format.

        Parameters
        ----------
        weight : ndarray, shape (out, in) or (out, in, *kernel)

        Raises
        ------
        FormatError
            If the format cannot hold these zeros.
        """
        weight = np.ascontiguousarray(weight)
        self.check(weight.shape)
        return KernelIndex(self, weight.shape, weight.dtype, self.encode_arrays(weight))

    def decode(self, index: KernelIndex) -> Array:
        """The dense weight that ``index`` stores.

        Raises
        ------
        FormatError
            If ``index`` is of another format.
        """
        if index.format != self:
            raise FormatError(
                f"{self.label}: cannot decode an index of format {index.format.label}; call its own decode"
            )
        return self.decode_arrays(index)

    @abstractmethod
    def encode_arrays(self, weight: Array) -> dict[str, Array]:
        """The arrays for a checked, contiguous ``weight``."""

    @abstractmethod
    def decode_arrays(self, index: KernelIndex) -> Array:
        """The dense weight of a checked index of this format."""

    @abstractmethod
    def check_contents(self, index: KernelIndex) -> None:
        """Nothing, if the arrays (whose types and shapes are right) describe a weight.

        Raises
        ------
        FormatError
        """

    @classmethod
    @abstractmethod
    def examples(cls) -> tuple[IndexFormat, ...]:
        """Usual parameters, those compared when nobody names any."""

    def refuse(self, index: KernelIndex, name: str, found: str, allowed: str) -> FormatError:
        """The error for contents of array ``name``."""
        return FormatError(
            f"{self.label} of shape {index.shape}: array {name!r} {found}; {allowed}; encode the weight again"
        )


@dataclass(frozen=True, eq=False)
class KernelIndex:
    """A weight in an index format: all that the compiler may see of a kernel's sparsity.

    Attributes
    ----------
    format : IndexFormat
    shape : tuple of int
        Of the dense weight.
    dtype : numpy.dtype
        Of the weight.
    arrays : mapping of str to ndarray
        As ``format.array_specs`` says; read-only.

    Raises
    ------
    FormatError
        If the arrays are not what the format says.
    """

    format: IndexFormat
    shape: Shape
    dtype: np.dtype[Any]
    arrays: Mapping[str, Array]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        self.format.check(self.shape)
        specs = self.format.array_specs(self.shape, self.dtype)
        check_arrays(f"{self.format.label} of shape {self.shape}", specs, self.arrays)
        views = {}
        for spec in specs:
            views[spec.name] = self.arrays[spec.name].view()
            views[spec.name].setflags(write=False)
        object.__setattr__(self, "arrays", MappingProxyType(views))
        self.format.check_contents(self)

    @property
    def value_bytes(self) -> int:
        """Bytes of the stored values, padding included."""
        return self._bytes("value")

    @property
    def index_bytes(self) -> int:
        """Bytes of all index arrays, pointers and padding included."""
        return self._bytes("index")

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        return self.value_bytes + self.index_bytes

    def decode(self) -> Array:
        """The dense weight."""
        return self.format.decode(self)

    def _bytes(self, role: str) -> int:
        specs = self.format.array_specs(self.shape, self.dtype)
        return sum(self.arrays[spec.name].nbytes for spec in specs if spec.role == role)


def check_arrays(where: str, specs: tuple[ArraySpec, ...], arrays: Mapping[str, Array]) -> None:
    """Nothing, if ``arrays`` are exactly those of ``specs``, in types and shapes.

    Raises
    ------
    FormatError
        That names the first array which differs.
    """
    names = [spec.name for spec in specs]
    if sorted(arrays) != sorted(names):
        raise FormatError(
            f"{where}: arrays {sorted(arrays)} given; this format has {names}; give exactly these"
        )
    extents: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if not isinstance(array, np.ndarray) or str(array.dtype) != spec.dtype:
            found = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
            raise FormatError(f"{where}: array {spec.name!r} is {found}; it must be {spec.dtype}; convert it")
        fits = len(array.shape) == len(spec.shape)
        for size, rule in zip(array.shape, spec.shape, strict=False):
            wanted = extents.setdefault(rule, size) if isinstance(rule, str) else rule
            fits = fits and size == wanted
        if not fits:
            rule_text = tuple(extents.get(r, r) if isinstance(r, str) else r for r in spec.shape)
            raise FormatError(
                f"{where}: array {spec.name!r} has shape {array.shape}; it must be {rule_text}; encode it "
                "again"
            )


def positions(shape: Shape) -> int:
    """Kernel positions of a weight: kh·kw for a convolution, 1 for a linear layer."""
    return math.prod(shape[2:])


def segment_of(indptr: Array) -> Array:
    """The segment of each entry: (segments + 1,) pointers → (entries,)."""
    lengths: Array = np.diff(indptr)
    return np.repeat(np.arange(len(indptr) - 1), lengths)


def check_pointers(index: KernelIndex, name: str, total: int) -> None:
    """Nothing, if array ``name`` starts at 0, never falls and ends at ``total``.

    Raises
    ------
    FormatError
    """
    pointers = index.arrays[name]
    if pointers[0] != 0 or pointers[-1] != total or (np.diff(pointers.astype(np.int64)) < 0).any():
        raise index.format.refuse(
            index, name, f"runs from {pointers[0]} to {pointers[-1]}", f"it must rise from 0 to {total}"
        )


def check_ascending(index: KernelIndex, pointers: Array, name: str, limit: int) -> None:
    """Nothing, if the entries of array ``name`` rise strictly inside each segment and lie in [0, limit).

    Raises
    ------
    FormatError
    """
    entries = index.arrays[name].astype(np.int64)
    if not len(entries):
        return
    if entries.min() < 0 or entries.max() >= limit:
        raise index.format.refuse(
            index, name, f"holds {entries.min()} to {entries.max()}", f"entries must lie in [0, {limit})"
        )
    falls = np.diff(entries) <= 0
    starts = pointers[1:-1].astype(np.int64)
    starts = starts[(starts > 0) & (starts < len(entries))]
    falls[starts - 1] = False
    if falls.any():
        raise index.format.refuse(
            index, name, f"does not rise at entry {int(falls.argmax()) + 1}", "it must rise inside each row"
        )


FORMATS: Registry[type[IndexFormat]] = Registry("index format")
"""All index formats by name."""
