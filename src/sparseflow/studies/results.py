"""What the studies found: plain, frozen, JSON-ready records; importable without torch and without TVM.

Stored are measured things only. Ratios (speed-up, compression, points lost) are properties, so that no
file can contradict itself.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from sparseflow.core.codec import decode
from sparseflow.core.plan import Measurement, Plan
from sparseflow.errors import FormatError, SparseflowError

DENSE = "dense"
OURS = "sparseflow"

T = TypeVar("T")


@dataclass(frozen=True)
class FormatBytes:
    """Size of the pruned layers' weights in one index format, padding and pointers included."""

    format: str
    value_bytes: int
    index_bytes: int

    @property
    def total_bytes(self) -> int:
        """Values and index together."""
        return self.value_bytes + self.index_bytes


@dataclass(frozen=True)
class Variant:
    """One network of the study: the dense one, or one pruned to a structure.

    Attributes
    ----------
    name : str
        Short and unique: ``dense``, ``unstructured``, ``block``, ``pattern``.
    structure : str
        In the grammar of `sparseflow.core.structures.parse_structure`; ``dense`` for the dense network.
    weights_total, weights_kept : int
        Over the layers that the study prunes (the same layers for each variant).
    accuracy_torch, accuracy_engine : float
        Fraction of the whole test set that is classified correctly, in torch and by the compiled engine.
    max_relative_error : float
        Largest difference of the engine's outputs from torch's, relative to the largest output.
    storage : tuple of FormatBytes
        The pruned layers' weights in each index format that can hold them.
    plan : Plan
        What the compiler decided for every layer.
    """

    name: str
    structure: str
    weights_total: int
    weights_kept: int
    accuracy_torch: float
    accuracy_engine: float
    max_relative_error: float
    storage: tuple[FormatBytes, ...]
    plan: Plan

    @property
    def sparsity(self) -> float:
        """Fraction of the pruned layers' weights that is zero."""
        return 1.0 - self.weights_kept / self.weights_total

    @property
    def compression(self) -> float:
        """Weights of the dense layers for each weight kept."""
        return self.weights_total / max(self.weights_kept, 1)

    @property
    def value_bytes(self) -> int:
        """Bytes of stored weight values over all layers of the engine."""
        return sum(layer.value_bytes for layer in self.plan.layers)

    @property
    def index_bytes(self) -> int:
        """Bytes of index arrays over all layers of the engine."""
        return sum(layer.index_bytes for layer in self.plan.layers)

    @property
    def tiles_total(self) -> int:
        """Weight tiles a dense kernel of the same blocking multiplies, over all layers."""
        return sum(layer.tiles_total for layer in self.plan.layers)

    @property
    def tiles_computed(self) -> int:
        """Weight tiles the chosen kernels multiply, over all layers."""
        return sum(layer.tiles_computed for layer in self.plan.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of the dense network for one call."""
        return sum(layer.macs_dense for layer in self.plan.layers)

    @property
    def macs_computed(self) -> int:
        """Multiply-accumulates that the chosen kernels do for one call."""
        return sum(layer.macs_computed for layer in self.plan.layers)


@dataclass(frozen=True)
class Timing:
    """Latency of one variant in one engine; all timings of a result were taken interleaved in one run."""

    engine: str
    variant: str
    measurement: Measurement


@dataclass(frozen=True)
class MaskPicture:
    """Which weights of one layer a variant keeps.

    Attributes
    ----------
    shape : tuple of int
        The weight's shape, OIHW for a convolution.
    bits : str
        The mask, one bit a weight in C order (`numpy.packbits`), as base64.
    """

    layer: str
    variant: str
    shape: tuple[int, ...]
    bits: str

    @classmethod
    def of(cls, layer: str, variant: str, keep: npt.NDArray[np.bool_]) -> MaskPicture:
        """The picture of ``keep``."""
        bits = base64.b64encode(np.packbits(keep.reshape(-1)).tobytes()).decode("ascii")
        return cls(layer, variant, tuple(int(n) for n in keep.shape), bits)

    def keep(self) -> npt.NDArray[np.bool_]:
        """The mask, bool, in the weight's shape.

        Raises
        ------
        SparseflowError
            If ``bits`` does not hold as many bits as the shape has weights.
        """
        count = int(np.prod(self.shape))
        try:
            packed = np.frombuffer(base64.b64decode(self.bits, validate=True), dtype=np.uint8)
        except ValueError as error:
            raise SparseflowError(f"mask of {self.layer!r}: bits are not base64 ({error})") from error
        if packed.size != (count + 7) // 8:
            raise SparseflowError(
                f"mask of {self.layer!r}: {packed.size} bytes of bits for shape {self.shape}, which needs "
                f"{(count + 7) // 8}; run the study again"
            )
        return np.unpackbits(packed, count=count).reshape(self.shape).astype(np.bool_)


@dataclass(frozen=True)
class Environment:
    """Where and how a study ran: enough to run it again."""

    machine: str
    versions: dict[str, str]
    command: str
    created: str
    threads: int
    seed: int


@dataclass(frozen=True)
class QuickstartResult:
    """Everything the quick start found.

    Attributes
    ----------
    variants : tuple of Variant
        The dense network first.
    timings : tuple of Timing
        Batch 1, interleaved; engine ``sparseflow`` for every variant, the peers for the dense network.
    stage_seconds : dict of str to float
        Wall time of each stage, from the run in which it was done.
    """

    variants: tuple[Variant, ...]
    timings: tuple[Timing, ...]
    masks: tuple[MaskPicture, ...]
    environment: Environment
    data: str
    train_images: int
    test_images: int
    stage_seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    kind: Literal["quickstart"] = "quickstart"

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises
        ------
        SparseflowError
            If there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(v.name for v in self.variants)
        raise SparseflowError(f"the quick start has no variant {name!r}; it has {known}")

    def timing(self, name: str, engine: str = OURS) -> Timing | None:
        """Timing of a variant in an engine, or None when that pair was not timed."""
        return next((t for t in self.timings if t.variant == name and t.engine == engine), None)

    @property
    def best_peer(self) -> Timing | None:
        """The fastest other engine on the dense network, by median."""
        peers = [t for t in self.timings if t.engine != OURS and t.variant == DENSE]
        return min(peers, key=lambda t: t.measurement.median_s, default=None)

    def speedup_vs_dense(self, name: str) -> float | None:
        """Median of our dense engine over that of the variant's engine."""
        return self._speedup(self.timing(DENSE), name)

    def speedup_vs_best_peer(self, name: str) -> float | None:
        """Median of the best peer on the dense network over that of the variant's engine."""
        return self._speedup(self.best_peer, name)

    def _speedup(self, base: Timing | None, name: str) -> float | None:
        mine = self.timing(name)
        if base is None or mine is None:
            return None
        return base.measurement.median_s / mine.measurement.median_s

    def points_lost(self, name: str) -> float:
        """Accuracy of the dense engine minus the variant's, in percentage points."""
        return 100.0 * (self.variant(DENSE).accuracy_engine - self.variant(name).accuracy_engine)


def read(cls: type[T], data: object, where: str | Path, partial: bool = False) -> T:
    """``data`` as an object of ``cls``, or a `SparseflowError` that names the first wrong entry.

    ``partial`` passes over keys that ``cls`` does not have.
    """
    try:
        return decode(cls, data, partial)
    except FormatError as error:
        raise SparseflowError(
            f"{where}: {error}; the file is of another version or damaged: run again"
        ) from error
