"""How fast single layers run on sparse maps: the map's zeros alone, the weights' alone, and both together."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.core.kernel_speed import GIGA, Layer

DENSE = "dense"
DIRECT, WINOGRAD, WEIGHTS, MAP, BOTH = "direct", "winograd", "weights", "map", "both"
USES = (DIRECT, WINOGRAD, WEIGHTS, MAP, BOTH)
"""Which zeros a kernel uses: none (without or with Winograd), the weights', the map's, those of both."""


@dataclass(frozen=True)
class MapRun:
    """One layer with random zeros in its weights and its input, by all kernels, in one interleaved run.

    Attributes
    ----------
    structure : str
        Of the weights: ``block:64x1@0.75``, or ``dense``.
    weight_density, map_density : float
        Fractions that are not zero.
    times_s : dict of str to float
        Of the fastest kernel for each of `USES` that has one. Kernels on indexed maps make their output's index.
    kernels : dict of str to str
        Its template and parameters.
    peak_gflops : float
        The FMA peak measured in that run.
    tiles : float
        Fraction of the map's tiles that are not all zero; ``map_density`` is that of the whole map.
    """

    layer: Layer
    structure: str
    weight_density: float
    map_density: float
    times_s: dict[str, float]
    kernels: dict[str, str]
    peak_gflops: float
    tiles: float = 1.0

    @property
    def judged(self) -> str:
        """The use that the run is about: both where weights have zeros, else the map's."""
        return MAP if self.structure == DENSE else BOTH

    def speedup(self, over: str) -> float | None:
        """Of the judged kernel over another use; None where one of them has no kernel."""
        if over not in self.times_s or self.judged not in self.times_s:
            return None
        return self.times_s[over] / self.times_s[self.judged]

    @property
    def over_alone(self) -> float | None:
        """Over the faster of the kernels that use one side's zeros only; None unless both sides have zeros."""
        alone = [self.times_s[use] for use in (WEIGHTS, MAP) if use in self.times_s]
        if self.judged != BOTH or BOTH not in self.times_s or not alone:
            return None
        return min(alone) / self.times_s[BOTH]

    @property
    def efficiency(self) -> float | None:
        """FLOPs of what neither side's zeros remove, over the peak of the same run."""
        if self.judged not in self.times_s:
            return None
        useful = self.layer.flops * self.weight_density * self.map_density
        return useful / self.times_s[self.judged] * GIGA / self.peak_gflops
