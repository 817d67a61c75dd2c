"""Single layers timed: the best kernel of a structure in turn with our best dense kernel and the core's peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sparseflow.core import parse_sparsify
from sparseflow.core.kernel_speed import GIGA, KernelRun, Layer, SpeedPoint, kernel_label
from sparseflow.engine.measure.core_limits import Probe, fma_probe
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import host_target
from sparseflow.errors import CompileError
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.selector import Selector, Timed, Trial, layouts_for, time_interleaved, trials
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload

Weight = npt.NDArray[np.float32]

CONTENDERS = 4  # sparse kernels that are compiled and timed for one point of a break-even curve
ATTEMPTS = 4  # runs of one case on a machine that others disturb
UNDISTURBED = 0.95  # of the highest FMA peak seen
DENSE = "dense"


@dataclass
class KernelBench:
    """Times kernels of single layers on this machine, one thread, float32, bias and ReLU in the epilogue.

    Parameters
    ----------
    measure : bool
        Whether the selector measures; False takes the cost model's choice.
    rounds : int
        Samples of each kernel; kernels take turns.
    say : callable, optional
        Told what is being compiled.
    """

    measure: bool = True
    rounds: int = 15
    say: Callable[[str], None] | None = None
    target: Target = field(default_factory=host_target)
    _dense: dict[Layer, tuple[Candidate, Trial]] = field(default_factory=dict)
    _peak: Probe | None = None
    _highest: float = 0.0

    def __post_init__(self) -> None:
        self.selector = Selector(self.target, machine_name(), self.measure, self.say)

    def run(self, layer: Layer, structure: str) -> KernelRun:
        """The kernel that the selector takes for ``structure`` (``block:4x1@0.9``, ``dense``), timed.

        Raises
        ------
        StructureError
            If the structure does not fit the layer.
        """
        weight = random_weight(layer, structure)
        smaller, kept = cut(layer, weight)
        workload = workload_of(smaller, kept, self.target)
        stored = LayerWeight(kept, workload.weight_shape)
        best = self.selector.choose(workload, stored, f"{layer.name} {structure}").best
        (trial,) = trials(self.target, workload, [best], stored)
        dense, reference = self.dense(layer)
        times, peak_gflops = self._times([trial, reference])
        core, memory = traffic(workload, best, stored)
        return KernelRun(
            layer=layer,
            structure=structure,
            density=float(np.mean(weight != 0)),
            template=best.template,
            parameters=dict(best.parameters),
            time_s=times[0],
            dense_s=times[1],
            dense_kernel=kernel_label(dense.template, dense.parameters),
            peak_gflops=peak_gflops,
            core_bytes=core,
            memory_bytes=memory,
        )

    def point(self, layer: Layer, structure: str, curve: str = "") -> SpeedPoint:
        """The fastest sparse kernel for ``structure``, whatever its density, in turn with the best dense one.

        The rules by which templates refuse high densities are passed over: where they stand is what a break-even
        curve shows. ``curve`` names the curve that the point belongs to, if not the structure itself.

        Raises
        ------
        CompileError
            If no sparse kernel takes the layer.
        """
        weight = random_weight(layer, structure)
        workload = workload_of(layer, weight, self.target)
        found = sparse_candidates(workload)[:CONTENDERS]
        dense, reference = self.dense(layer)
        stored = LayerWeight(weight, workload.weight_shape)
        times, _ = self._times([reference, *trials(self.target, workload, found, stored)])
        best = int(np.argmin(times[1:]))
        return SpeedPoint(
            layer=layer,
            structure=curve or structure.partition("@")[0],
            density=float(np.mean(weight != 0)),
            sparse_s=times[1 + best],
            dense_s=times[0],
            sparse_kernel=kernel_label(found[best].template, found[best].parameters),
            dense_kernel=kernel_label(dense.template, dense.parameters),
        )

    def dense(self, layer: Layer) -> tuple[Candidate, Trial]:
        """Our best kernel for the layer without zeros, chosen once."""
        if layer not in self._dense:
            values = random_weight(layer, DENSE)
            workload = workload_of(layer, values, self.target)
            weight = LayerWeight(values, workload.weight_shape)
            best = self.selector.choose(workload, weight, f"{layer.name} dense").best
            self._dense[layer] = (best, trials(self.target, workload, [best], weight)[0])
        return self._dense[layer]

    def _times(self, kernels: Sequence[Timed]) -> tuple[list[float], float]:
        """Seconds of each kernel and the FMA peak in GFLOP/s, of one interleaved run that was not disturbed.

        A run whose peak is well below the highest seen shared its core with others: it is repeated, and of `ATTEMPTS`
        such runs the one of the highest peak counts.
        """
        if self._peak is None:
            self._peak = fma_probe(self.target)
        best: tuple[list[float], float] = ([], 0.0)
        for _ in range(ATTEMPTS):
            *times, peak_s = time_interleaved([*kernels, self._peak], self.rounds)
            best = max(best, (times, self._peak.work / peak_s * GIGA), key=lambda found: found[1])
            self._highest = max(self._highest, best[1])
            if best[1] >= UNDISTURBED * self._highest:
                break
        return best


def random_weight(layer: Layer, structure: str) -> Weight:
    """Seeded normal weights, pruned by magnitude to ``STRUCTURE@SPARSITY``; ``dense`` leaves them.

    Raises
    ------
    StructureError
        If the structure does not fit the layer.
    """
    values = np.random.default_rng(0).standard_normal(layer.weight_shape, dtype=np.float32)
    if structure == DENSE:
        return values
    spec = parse_sparsify(structure)
    mask = spec.structure.mask(np.abs(values), spec.density)
    return np.where(mask.keep, values, np.float32(0.0))


def workload_of(layer: Layer, weight: Weight, target: Target) -> Workload:
    """The layer as the kernel templates see it."""
    pad = layer.kernel // 2
    workload = Workload(
        op=layer.op,
        batch=layer.batch,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        filters=layer.filters,
        kernel_size=(layer.kernel, layer.kernel),
        padding=(pad, pad, pad, pad),
        bias=True,
        activation="relu",
        target=target,
    )
    return workload.with_zeros_of(weight.reshape(workload.weight_shape))


def cut(layer: Layer, weight: Weight) -> tuple[Layer, Weight]:
    """The layer without its dead filters and channels, as the compiler cuts them out of a network."""
    others = tuple(range(1, weight.ndim))
    filters = np.any(weight != 0, axis=others)
    channels = np.any(weight != 0, axis=(0, *others[1:]))
    kept = np.ascontiguousarray(weight[filters][:, channels])
    return replace(layer, filters=int(filters.sum()), channels=int(channels.sum())), kept


def sparse_candidates(workload: Workload) -> list[Candidate]:
    """Candidates of all sparse templates, the best of each first, then the rest as the cost model ranks them.

    Raises
    ------
    CompileError
        If no sparse template takes the layer at any density.
    """
    thin = replace(workload, covers=tuple((r, 0.05) for r, _ in workload.covers))
    first, rest, reasons = [], [], []
    for name, template in TEMPLATES.items():
        if template.format == DENSE:
            continue
        reason = template.refusal(thin)
        found = template.candidates(workload) if reason is None else []
        if reason is not None:
            reasons.append(f"{name}: {reason}")
        first += found[:1]
        rest += found[1:]
    if not first:
        raise CompileError(
            f"no sparse kernel for {workload.op} {workload.weight_shape}: {'; '.join(reasons)}"
        )
    return ranked(workload, first) + ranked(workload, rest)


def ranked(workload: Workload, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates as the cost model ranks them, the fastest first."""
    return sorted(candidates, key=lambda c: TEMPLATES[c.template].predict_cycles(workload, c))


def traffic(workload: Workload, candidate: Candidate, weight: LayerWeight) -> tuple[float | None, float]:
    """Bytes of one call: between registers and L1 (None for kernels without register tiles), and of the operands.

    A tile of ``rows x V`` vectors reads the packed weights and index once; each stored weight column of R filters reads
    one input vector for each vector of the tile; partial sums between chunks of channels are written and read.
    """
    template, p = TEMPLATES[candidate.template], candidate.parameters
    packed = weight.packed(template, workload, candidate, layouts_for(template, workload))
    stored = float(sum(a.nbytes for a in packed.values()))
    positions = workload.batch * workload.out_height * workload.out_width
    output = float(workload.batch * workload.output_bytes)
    memory = workload.batch * workload.input_bytes + stored + output
    tiled = _positive(p, "R") and _positive(p, "rows") and _positive(p, "V") and "data" in packed
    if not tiled:
        return None, memory
    tiles = positions / (p["rows"] * p["V"] * workload.vectors.lanes)
    chunks = math.ceil(workload.channels / p["chunk"]) if p.get("chunk") else 1
    loads = float(workload.maps.nbytes) * packed["data"].size / p["R"] * positions
    return loads + stored * tiles + output * (2 * chunks - 1), memory


def _positive(parameters: Mapping[str, int], name: str) -> bool:
    return parameters.get(name, 0) > 0
