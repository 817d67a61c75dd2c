"""Single layers on sparse maps timed: kernels that use the map's zeros, the weights', both, or none, in turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from sparseflow.core.kernel_speed import Layer, kernel_label
from sparseflow.core.map_speed import BOTH, DENSE, DIRECT, MAP, WEIGHTS, WINOGRAD, MapRun
from sparseflow.engine.kernel_timing import KernelBench, random_weight, workload_of
from sparseflow.kernels.select import trials
from sparseflow.kernels.target import vector_unit
from sparseflow.kernels.workload import TEMPLATES, Candidate, Workload

CONTENDERS = 4  # kernels of one use that are compiled and timed
CACHED_BYTES = 16 << 20  # larger weights are not found in a cache again: each kernel runs once in its turn


class MapBench(KernelBench):
    """A `KernelBench` whose layers' inputs have random zeros too."""

    def map_run(self, layer: Layer, structure: str, map_density: float) -> MapRun:
        """All uses of zeros on one layer, in turn.

        Parameters
        ----------
        layer : Layer
        structure : str
            Of the weights: ``block:64x1@0.75``, or ``dense``.
        map_density : float
            Of the input; its zeros are drawn independently.

        Raises
        ------
        StructureError
            If the structure does not fit the layer.
        """
        weight = random_weight(layer, structure)
        dense = replace(workload_of(layer, random_weight(layer, DENSE), vector_unit(self.target)))
        sparse = replace(workload_of(layer, weight, vector_unit(self.target)), map_density=map_density)
        found = contenders(sparse, dense)
        entries = [(use, candidate) for use, kernels in found.items() for candidate in kernels]
        ready = trials(self.target, sparse, [candidate for _, candidate in entries], weight)
        alone = weight.nbytes > CACHED_BYTES
        times, peak_gflops = self._times(list(ready), sample_s=0.0 if alone else 1e-3)
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
        )


def contenders(sparse: Workload, dense: Workload) -> dict[str, list[Candidate]]:
    """For each use of zeros that has a kernel, its candidates with the best predictions.

    Parameters
    ----------
    sparse, dense : Workload
        The layer as it is, and without zeros; dense kernels are chosen for the latter.
    """
    found: dict[str, list[Candidate]] = {}
    for name, template in TEMPLATES.items():
        use = _use(name)
        workload = dense if use in (DIRECT, WINOGRAD) else sparse
        weights_are_dense = sparse.density() == 1.0
        if (use in (WEIGHTS, BOTH) and weights_are_dense) or template.refusal(workload) is not None:
            continue
        found.setdefault(use, []).extend(_promising(workload, template.candidates(workload)))
    return {use: list(_promising(sparse, kernels)) for use, kernels in found.items()}


def _use(name: str) -> str:
    """The zeros that a template uses."""
    template = TEMPLATES[name]
    if not template.exact:
        return WINOGRAD
    of_map = template.layout == "pixels" or name == "few-rows-skip"
    if template.format == DENSE:
        return MAP if of_map else DIRECT
    return BOTH if of_map else WEIGHTS


def _promising(workload: Workload, candidates: Iterable[Candidate]) -> list[Candidate]:
    def predicted(candidate: Candidate) -> float:
        return TEMPLATES[candidate.template].predict_cycles(workload, candidate)

    return sorted(candidates, key=predicted)[:CONTENDERS]
