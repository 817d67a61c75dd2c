"""The layers of a network timed alone, at every structure and density: the rows of a `LatencyTable`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm

from sparseflow.core.checks import whole_number
from sparseflow.core.latency_table import DENSE, LayerOption, LayerTimes
from sparseflow.core.structures import SparsifySpec, parse_structure
from sparseflow.engine.compile import compile
from sparseflow.engine.frontends.importer import Imported
from sparseflow.engine.runtime.threads import checked_threads, set_threads
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import host_target
from sparseflow.errors import InputError, StructureError
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.selector import Selector, Trial, layouts_for, time_interleaved, trials
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Workload
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.demand import SHARING
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer, weight_of

BLOCKS = 9
"""Times that the whole network is measured, apart from each other."""


def prunings(structures: Sequence[str], densities: Sequence[float]) -> tuple[SparsifySpec, ...]:
    """Every structure at every density that it can have; a fixed density once.

    Raises
    ------
    RegistryError, StructureError
        If a structure cannot be read or a density is not in (0, 1).
    """
    found = []
    for density in densities:
        if not 0.0 < density < 1.0:
            raise StructureError(f"density {density:g} is not inside (0, 1); dense is always measured")
    for text in structures:
        structure = parse_structure(text)
        fixed = structure.fixed_density
        allowed = densities if fixed is None else (fixed,)
        found += [
            SparsifySpec(structure, d, f"{structure}@{1 - d:.3g}")
            for d in allowed
            if d <= structure.max_density
        ]
    return tuple(found)


@dataclass
class LayerTimer:
    """Times the layers of an imported network on this machine, each with the epilogue that it has in the network.

    Parameters
    ----------
    imported : Imported
        A dense network; its weights are pruned by magnitude for each measurement.
    threads : int
    measure : bool
        Whether the selector measures the candidates; the chosen ones are timed in any case.
    rounds : int
        Samples of each kernel; the options of a layer take turns.
    say : callable, optional
        Told what is being measured.

    Raises
    ------
    InputError
        If the threads or the rounds are out of bounds.
    """

    imported: Imported
    threads: int = 1
    measure: bool = True
    rounds: int = 15
    say: Callable[[str], None] = lambda _text: None
    target: Target = field(default_factory=host_target)

    def __post_init__(self) -> None:
        self.threads = checked_threads(self.threads, measured=True, error=InputError)
        self.rounds = whole_number("rounds", self.rounds, 1, None, InputError)
        self.selector = Selector(self.target, machine_name(), self.measure, self.say)
        with self.target.tvm:
            passes = [Canonicalise(self.target, self.threads)]
            mod = tvm.transform.Sequential(passes)(self.imported.mod)
        self._layers = dict(_layers(mod))

    @property
    def names(self) -> tuple[str, ...]:
        """Layers that can be tuned, in the order in which they run: convolutions without groups and linear layers."""
        return tuple(self._layers)

    def network(self, inputs: Sequence[Array]) -> tuple[float, int]:
        """Seconds of a call of the whole dense network, and bytes of its packed weights."""
        engine = compile(self.imported, threads=self.threads, measure=self.measure, progress=self.say)
        nbytes = sum(layer.value_bytes + layer.index_bytes for layer in engine.plan.layers)
        blocks = [engine.measure(*inputs, repeats=4 * self.rounds).median_s for _ in range(BLOCKS)]
        return min(blocks), nbytes  # what disturbs a block only ever adds to it

    def times(self, name: str, wanted: Sequence[SparsifySpec]) -> LayerTimes:
        """The layer dense and in every pruning that fits it, timed in turn.

        Raises
        ------
        InputError
            If there is no such layer.
        """
        if name not in self._layers:
            raise InputError(f"no layer {name!r} to tune; there are {', '.join(self.names)}")
        set_threads(self.threads)
        workload, weight = self._layers[name]
        prepared = [self._prepare(name, DENSE, 1.0, workload, weight)]
        for pruning in wanted:
            try:
                mask = pruning.structure.mask(np.abs(weight), pruning.density)
            except StructureError:  # the structure does not fit this layer, which then lacks the option
                continue
            kept, smaller = _cut(workload, np.where(mask.keep, weight, np.float32(0)))
            text = str(pruning.structure)
            prepared.append(self._prepare(name, text, pruning.density, smaller, kept))
        seconds = time_interleaved([trial for _, trial in prepared], self.rounds)
        dense, *options = (replace(o, time_s=t) for (o, _), t in zip(prepared, seconds, strict=True))
        return LayerTimes(tuple(int(n) for n in weight.shape), dense, tuple(options))

    def _prepare(
        self, name: str, structure: str, density: float, workload: Workload, weight: Array
    ) -> tuple[LayerOption, Trial]:
        """The option, not timed yet, and what is to be timed."""
        workload = workload.with_zeros_of(weight.reshape(workload.weight_shape))
        label = f"{name} {structure}" if structure == DENSE else f"{name} {structure}@{1 - density:.3g}"
        kept = LayerWeight(weight, workload.weight_shape)
        choice = self.selector.choose(workload, kept, label)
        nbytes = _nbytes(workload, choice.best, kept)
        (trial,) = trials(self.target, workload, [choice.best], kept)
        return LayerOption(structure, density, 0.0, nbytes, choice.times[0].label), trial


def _layers(mod: Any) -> Iterator[tuple[str, tuple[Workload, Array]]]:
    for binding in Graph(mod).bindings:
        if is_layer(binding.value):
            attrs = LayerAttrs.of(binding.value)
            if attrs.workload.groups == 1:
                yield attrs.name.removesuffix(".weight"), (attrs.workload, weight_of(binding.value))


def _cut(workload: Workload, weight: Array) -> tuple[Array, Workload]:
    """The layer without its dead filters and channels, filters up to a multiple of `SHARING`, as in a network."""
    flat = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    filters, channels = flat.any(axis=1), flat.any(axis=0)
    missing = -int(filters.sum()) % SHARING
    filters[np.flatnonzero(~filters)[:missing]] = True
    kept = np.ascontiguousarray(weight[filters][:, channels])
    return kept, replace(workload, filters=kept.shape[0], channels=kept.shape[1])


def _nbytes(workload: Workload, best: Candidate, weight: LayerWeight) -> int:
    """Bytes of packed values and index; a kernel without an index is counted with its plain weight."""
    template = TEMPLATES[best.template]
    if template.format == DENSE:
        return int(weight.dense.size) * template.stored(workload, best).nbytes
    packed = weight.packed(template, workload, best, layouts_for(template, workload))
    return int(sum(a.nbytes for a in packed.values()))
