"""How fast single layers run: a layer, the limits of a core, and what was measured.

Stored are measured things; rates, ratios and bounds are properties, so that no file can contradict itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIGA = 1e-9


@dataclass(frozen=True)
class Layer:
    """One layer of a benchmark; a linear layer of T rows is a map of 1 x T.

    Attributes
    ----------
    name : str
        As in a table: ``3x3 64→64 @56²``.
    group : str
        The class of layers that it stands for.
    kernel : int
        Side of the square kernel; the padding keeps the map's size, the stride is 1.
    """

    name: str
    group: str
    channels: int
    filters: int
    height: int
    width: int
    kernel: int = 1
    batch: int = 1
    op: Literal["conv2d", "linear"] = "conv2d"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """OIHW, or (out, in) of a linear layer."""
        if self.op == "linear":
            return (self.filters, self.channels)
        return (self.filters, self.channels, self.kernel, self.kernel)

    @property
    def flops(self) -> float:
        """Multiplications and additions of the dense layer."""
        return 2.0 * self.batch * self.filters * self.channels * self.kernel**2 * self.height * self.width


@dataclass(frozen=True)
class Limits:
    """What one core of the machine can do at most: GFLOP/s of float32 multiply-adds, GB/s of loads from each level."""

    machine: str
    fma_gflops: float
    l1_gbs: float
    l2_gbs: float
    l3_gbs: float
    dram_gbs: float
    cache_bytes: tuple[int, int, int]

    def level(self, nbytes: float) -> tuple[str, float]:
        """Name and GB/s of the smallest level that holds ``nbytes``."""
        rates = (("L1", self.l1_gbs), ("L2", self.l2_gbs), ("L3", self.l3_gbs))
        for (name, rate), size in zip(rates, self.cache_bytes, strict=True):
            if nbytes <= size:
                return name, rate
        return "DRAM", self.dram_gbs


@dataclass(frozen=True)
class KernelRun:
    """The best kernel of one layer and structure, timed in turn with our best dense kernel and the FMA peak.

    Attributes
    ----------
    structure : str
        ``block:4x1@0.9``, or ``dense``.
    density : float
        Non-zeros / weights, as the mask has them.
    time_s, dense_s : float
        Medians of one interleaved run.
    peak_gflops : float
        The FMA peak measured in that run.
    core_bytes : float or None
        Bytes that the kernel's loads and stores move between registers and L1; None if it is not known.
    memory_bytes : float
        Bytes of input, packed weights and index, and output, each counted once.
    """

    layer: Layer
    structure: str
    density: float
    template: str
    parameters: dict[str, int]
    time_s: float
    dense_s: float
    dense_kernel: str
    peak_gflops: float
    core_bytes: float | None
    memory_bytes: float

    @property
    def kernel(self) -> str:
        """Template and parameters."""
        return kernel_label(self.template, self.parameters)

    @property
    def useful_flops(self) -> float:
        """Those of non-zero weights."""
        return self.layer.flops * self.density

    @property
    def useful_gflops(self) -> float:
        """Useful FLOPs / time."""
        return self.useful_flops / self.time_s * GIGA

    @property
    def dense_equivalent_gflops(self) -> float:
        """The dense layer's FLOPs / time."""
        return self.layer.flops / self.time_s * GIGA

    @property
    def efficiency(self) -> float:
        """Useful FLOPs over the peak of the same run."""
        return self.useful_gflops / self.peak_gflops

    @property
    def speedup(self) -> float:
        """Over our best dense kernel."""
        return self.dense_s / self.time_s

    @property
    def core_intensity(self) -> float | None:
        """Useful FLOPs per byte that passes between registers and L1."""
        return None if self.core_bytes is None else self.useful_flops / self.core_bytes

    @property
    def memory_intensity(self) -> float:
        """Useful FLOPs per byte of the operands, each moved once."""
        return self.useful_flops / self.memory_bytes

    def bound(self, limits: Limits) -> tuple[float, str]:
        """The roofline's GFLOP/s and what sets it.

        References
        ----------
        Williams, Waterman, Patterson, *Roofline*, CACM 52(4), 2009, section 3; the intensity at the core is that of the
        cache-aware model (Ilic, Pratas, Sousa, IEEE CAL 13(1), 2014).
        """
        level, rate = limits.level(self.memory_bytes)
        bounds = [(limits.fma_gflops, "FMA"), (self.memory_intensity * rate, level)]
        if self.core_intensity is not None:
            bounds.append((self.core_intensity * limits.l1_gbs, "L1"))
        return min(bounds)


@dataclass(frozen=True)
class SpeedPoint:
    """A sparse kernel beside our best dense kernel of the same layer, in one interleaved run."""

    layer: Layer
    structure: str
    density: float
    sparse_s: float
    dense_s: float
    sparse_kernel: str
    dense_kernel: str

    @property
    def sparsity(self) -> float:
        """1 − density."""
        return 1.0 - self.density

    @property
    def speedup(self) -> float:
        """Dense time / sparse time."""
        return self.dense_s / self.sparse_s


def kernel_label(template: str, parameters: Mapping[str, int]) -> str:
    """``taps(R=4, V=7)``."""
    inner = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"{template}({inner})" if inner else template
