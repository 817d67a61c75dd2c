"""The order of all passes, the only place that knows it: named phases, each an ordinary sequence of TVM passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.element_type import ElementType
from sparseflow.core.map_profile import MapProfile
from sparseflow.kernels.cpu_rules.dense_matmul import legalize_matmul
from sparseflow.kernels.tuning.map_times import MapTimes
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.kernels.workload import Workload
from sparseflow.passes.attention import FuseAttention
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.comparisons import KEEP_NAN
from sparseflow.passes.decompose import Decompose
from sparseflow.passes.density import WriteDensities
from sparseflow.passes.index import Index
from sparseflow.passes.lower import Lower
from sparseflow.passes.map_index import IndexMaps
from sparseflow.passes.plan import PlanKernels
from sparseflow.passes.precision import Precision
from sparseflow.passes.propagate import Propagate
from sparseflow.passes.quantise import Quantise
from sparseflow.passes.schedule_rest import ScheduleRest
from sparseflow.passes.watch import Say, watched
from sparseflow.passes.weights import Weights

Observer = Callable[[str, Any], None]


def phases(
    selector: Selector,
    threads: int = 1,
    profile: MapProfile | None = None,
    weights: ElementType = Workload.weights,
    maps: ElementType = Workload.maps,
    quantise: Quantise | None = None,
) -> dict[str, list[Any]]:
    """The passes of each phase, in order.

    Parameters
    ----------
    selector : Selector
        Chooses the kernels in the phase ``plan``; its target is that of all passes.
    threads : int
    profile : MapProfile, optional
        How dense the feature maps are; with it they may carry an index.
    weights : ElementType
        Weights are rounded to it, and kernels may store them in it.
    maps : ElementType
        Layers multiply in it, where a kernel does; their maps are stored in it.
    quantise : Quantise, optional
        Puts layers on levels of 8 bits, where a kernel multiplies them.
    """
    target = selector.target
    kept = Weights()
    matmul = partial(legalize_matmul, vectors=target.vectors, threads=threads)
    return {
        "canonicalise": [Canonicalise(target, threads, weights)],
        "propagate": [
            Propagate(),
            *([quantise] if quantise is not None else []),
            *([Precision(maps)] if maps != Workload.maps else []),
        ],
        "index": [Index(kept), *([WriteDensities(profile)] if profile is not None else [])],
        "plan": [
            PlanKernels(selector, threads, kept),
            *([IndexMaps(MapTimes(selector, threads), kept)] if profile is not None else []),
        ],
        "lower": [FuseAttention(), Lower(target, threads, kept)],
        "finish": [
            relax.transform.DecomposeOpsForInference(),
            Decompose(),
            relax.transform.FoldConstant(),
            relax.transform.LegalizeOps({"relax.matmul": matmul, **KEEP_NAN}),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            ScheduleRest(target, threads),
        ],
    }


def run(
    mod: tvm.IRModule,
    selector: Selector,
    threads: int = 1,
    observe: Observer | None = None,
    profile: MapProfile | None = None,
    say: Say | None = None,
    weights: ElementType = Workload.weights,
    maps: ElementType = Workload.maps,
    quantise: Quantise | None = None,
) -> tvm.IRModule:
    """The module after all phases.

    Parameters
    ----------
    mod : tvm.IRModule
    selector, threads, profile, weights, maps, quantise
        As for `phases`.
    observe : callable, optional
        Called as ``observe(phase, module)`` after each phase, to look or to dump.
    say : callable, optional
        Told which pass runs long; without it that is a warning.
    """
    with selector.target.tvm:
        for name, passes in phases(selector, threads, profile, weights, maps, quantise).items():
            for step in passes:
                with watched(f"{name}: pass {step.info.name}", say):
                    mod = step(mod)
            if observe is not None:
                observe(name, mod)
    return mod
