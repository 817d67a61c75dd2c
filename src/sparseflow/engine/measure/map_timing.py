"""Single layers on sparse maps timed: kernels that use the map's zeros, the weights', both, or none, in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparseflow.core.kernel_speed import Layer, kernel_label
from sparseflow.core.map_speed import BOTH, DENSE, DIRECT, MAP, WEIGHTS, WINOGRAD, MapRun
from sparseflow.engine.measure.kernel_timing import KernelBench, random_weight, ranked, workload_of
from sparseflow.kernels.template import TEMPLATES, Candidate, KernelTemplate
from sparseflow.kernels.tuning.selector import Trial, trials
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload

CONTENDERS = 5  # kernels of one use that are compiled and timed
CACHED_BYTES = 16 << 20  # larger weights wait in no cache for the next input: it is emptied before each call
FLUSHED_BYTES = 128 << 20
TILE = 7  # rows and columns of the tiles that are zero together


class MapBench(KernelBench):
    """A `KernelBench` whose layers' inputs have random zeros too."""

    def map_run(self, layer: Layer, structure: str, map_density: float, tiles: float = 1.0) -> MapRun:
        """All uses of zeros on one layer, in turn.

        Parameters
        ----------
        layer : Layer
        structure : str
            Of the weights: ``block:64x1@0.75``, or ``dense``.
        map_density : float
            Of the input; its zeros are drawn independently.
        tiles : float
            Fraction of `TILE` x `TILE` tiles that hold all that is not zero.

        Raises
        ------
        StructureError
            If the structure does not fit the layer.
        """
        weight = random_weight(layer, structure)
        dense = workload_of(layer, random_weight(layer, DENSE), self.target)
        sparse = replace(workload_of(layer, weight, self.target), map_density=map_density)
        found = contenders(sparse, dense)
        entries = [(use, candidate) for use, kernels in found.items() for candidate in kernels]
        stored = LayerWeight(weight, sparse.weight_shape)
        ready = trials(self.target, sparse, [candidate for _, candidate in entries], stored)
        if tiles < 1.0:
            for trial in ready:
                _gather(trial, sparse, tiles)
        cold = weight.nbytes > CACHED_BYTES
        times, peak_gflops = self._times([Cold(t) for t in ready] if cold else list(ready))
        best: dict[str, tuple[float, Candidate]] = {}
        for (use, candidate), time_s in zip(entries, times, strict=True):
            if use not in best or time_s < best[use][0]:
                best[use] = (time_s, candidate)
        return MapRun(
            layer=layer,
            structure=structure,
            weight_density=float(np.mean(weight != 0)),
            map_density=map_density,
            times_s={use: time_s for use, (time_s, _) in best.items()},
            kernels={use: kernel_label(c.template, c.parameters) for use, (_, c) in best.items()},
            peak_gflops=peak_gflops,
            tiles=tiles,
        )


@dataclass(frozen=True)
class Cold:
    """A trial whose weights come from memory at each call, as they do when a network runs between two calls."""

    trial: Trial

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls, the caches emptied before each."""
        timer = self.trial.module.mod.time_evaluator(
            self.trial.name, self.trial.device, number=1, repeat=number, cache_flush_bytes=FLUSHED_BYTES
        )
        return float(timer(*self.trial.arguments).mean)


def _gather(trial: Trial, workload: Workload, tiles: float) -> None:
    """Replaces the input of a kernel on indexed maps by one whose non-zeros lie in a fraction of the tiles."""
    layout = workload.pixel_layouts().in_pixels("a trial")[0]
    if tuple(trial.arguments[1].shape) != (workload.batch, layout.bits_size):
        return
    random = np.random.default_rng(0)
    grid = (-(-workload.height // TILE), -(-workload.width // TILE))
    live = random.permutation(grid[0] * grid[1]).reshape(grid) < max(1, round(tiles * grid[0] * grid[1]))
    inside = np.kron(live, np.ones((TILE, TILE), np.bool_))[: workload.height, : workload.width]
    shape = (workload.batch, workload.channels, workload.height, workload.width)
    kept = random.random(shape) < workload.map_density / inside.mean()
    x = (random.random(shape) + 0.5) * kept * inside
    for argument, array in zip(trial.arguments, layout.pack(x.astype(np.float32))[:2], strict=False):
        argument.copyfrom(array)


def contenders(sparse: Workload, dense: Workload) -> dict[str, list[Candidate]]:
    """For each use of zeros that has a kernel, its candidates with the best predictions.

    Parameters
    ----------
    sparse, dense : Workload
        The layer as it is, and without zeros; dense kernels are chosen for the latter.
    """
    found: dict[str, list[Candidate]] = {}
    for template in TEMPLATES.values():
        use = _use(template)
        workload = dense if use in (DIRECT, WINOGRAD) else sparse
        weights_are_dense = sparse.density() == 1.0
        if (use in (WEIGHTS, BOTH) and weights_are_dense) or template.refusal(workload) is not None:
            continue
        found.setdefault(use, []).extend(ranked(workload, template.candidates(workload))[:CONTENDERS])
    return {use: ranked(sparse, kernels)[:CONTENDERS] for use, kernels in found.items()}


def _use(template: KernelTemplate) -> str:
    """The zeros that a template uses."""
    if not template.exact:
        return WINOGRAD
    if template.format == DENSE:
        return MAP if template.sparse_input else DIRECT
    return BOTH if template.sparse_input else WEIGHTS
