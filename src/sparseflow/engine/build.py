"""From an imported model to an engine: the phases of the pipeline, machine code, the manifest."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tvm
from tvm import relax, tirx

import sparseflow
from sparseflow.core.calibrated_ranges import RANGES, CalibratedRanges
from sparseflow.core.checks import flag
from sparseflow.core.element_type import BFLOAT16, ELEMENT_TYPES, FLOAT32, UINT8, ElementType, Quantised
from sparseflow.core.map_profile import MapProfile
from sparseflow.core.plan import Plan, cut_summary
from sparseflow.engine.frontends.importer import Imported
from sparseflow.engine.rest import rest_times
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import Manifest, Signature
from sparseflow.engine.runtime.threads import checked_threads, set_threads
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import not_here
from sparseflow.errors import CompileError, SparseflowError
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.tuning.selector import Selector
from sparseflow.passes import pipeline
from sparseflow.passes.hoist import call_labels, hoist_constants
from sparseflow.passes.levels import has_levels
from sparseflow.passes.plan import plan_of
from sparseflow.passes.propagate import cuts_of
from sparseflow.passes.quantise import Quantise
from sparseflow.passes.watch import watched

Progress = Callable[[str], None]

PRECISIONS: dict[str, ElementType] = {"fp32": FLOAT32, "bf16": BFLOAT16, "int8": UINT8, "auto": UINT8}
"""The types in which layers can multiply, by the names that users give them; ``auto`` mixes them."""
ERROR_LIMIT = 0.05
"""With ``auto``: how far a layer's sums may move, root mean square, to be put on levels."""

LEVELS_UNUSED = (
    "the model is quantised: its maps are computed without their levels; precision='int8' uses them"
)

CHECKED_ARGUMENTS = 64
"""Most arguments of a kernel that TVM's code checks at each call."""


@dataclass(frozen=True)
class Build:
    """How an engine is built; `sparseflow.compile` explains each.

    Attributes
    ----------
    target : Target
    threads : int
    measure, exact : bool
        For a target that this machine cannot run ``measure`` becomes False.
    sparsify : str
    dump : path or None
    progress : callable or None
    weights : str
        Name of the `ElementType` in which weights are stored.
    precision : str
        A key of `PRECISIONS`: the type in which layers multiply, where a kernel does.
    ranges : str
        A key of `RANGES`: how the ranges of quantised maps are drawn from the calibration inputs.

    Raises
    ------
    CompileError
        If one has another type, or the threads are out of bounds.
    """

    target: Target
    threads: int = 1
    measure: bool = True
    exact: bool = False
    sparsify: str = ""
    dump: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    weights: str = Plan.weights
    precision: str = Plan.precision
    ranges: str = "min-max"

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("measure", "exact"):
            keep(name, flag(name, getattr(self, name), CompileError))
        if self.measure and self.foreign:
            keep("measure", False)
        keep("threads", checked_threads(self.threads, self.measure))
        if not isinstance(self.sparsify, str):
            raise CompileError(f"sparsify={self.sparsify!r}: allowed: text")
        if self.weights not in ELEMENT_TYPES:
            raise CompileError(f"weights={self.weights!r}: allowed: {', '.join(ELEMENT_TYPES)}")
        if self.precision not in PRECISIONS:
            raise CompileError(f"precision={self.precision!r}: allowed: {', '.join(PRECISIONS)}")
        if self.ranges not in RANGES:
            raise CompileError(f"ranges={self.ranges!r}: allowed: {', '.join(RANGES)}")
        if not self.target.multiplies(PRECISIONS[self.precision]):
            raise CompileError(
                f"precision={self.precision!r}: target {self.target.name} has no instruction that multiplies "
                f"{PRECISIONS[self.precision]}; allowed: fp32"
            )
        if self.dump is not None and not isinstance(self.dump, str | os.PathLike):
            raise CompileError(f"dump={self.dump!r}: allowed: the path of a folder")
        if self.progress is not None and not callable(self.progress):
            raise CompileError(f"progress={self.progress!r}: allowed: a function of one text")

    @property
    def maps(self) -> ElementType:
        """The type in which layers multiply that are not on levels."""
        if self.precision == "auto" and self.target.multiplies(BFLOAT16):
            return BFLOAT16
        return FLOAT32 if self.on_levels else PRECISIONS[self.precision]

    @property
    def on_levels(self) -> bool:
        """Whether layers multiply levels, for which the ranges of maps have to be known."""
        return isinstance(PRECISIONS[self.precision], Quantised)

    @property
    def foreign(self) -> str | None:
        """Why this machine cannot run the code; None if it can."""
        return not_here(self.target.architecture, self.target.instruction_sets)

    def say(self, text: str) -> None:
        """Tells what is being done."""
        if self.progress is not None:
            self.progress(text)

    def selector(self) -> Selector:
        """Chooses the kernels."""
        return Selector(
            self.target, machine_name(), self.measure, lambda name: self.say(f"measure {name}"), self.exact
        )


def build(
    imported: Imported, how: Build, profile: MapProfile | None = None, ranges: CalibratedRanges | None = None
) -> Engine:
    """The engine of ``imported``; with a ``profile`` its feature maps may carry an index, with ``ranges`` be quantised.

    Raises
    ------
    CompileError
        If TVM cannot compile the model.
    """

    def observe(phase: str, mod: tvm.IRModule) -> None:
        how.say(phase)
        if how.dump is not None:
            _write(Path(how.dump), phase, mod)

    selector = how.selector()
    limit = ERROR_LIMIT if how.precision == "auto" else math.inf
    levels = Quantise(ranges, limit) if how.on_levels else None
    set_threads(how.threads)  # of the kernels that are measured
    with inside_tvm("lowering"):
        mod = pipeline.run(
            imported.mod, selector, how.threads, observe, profile, how.progress,
            ELEMENT_TYPES[how.weights], how.maps, levels,
        )  # fmt: skip
    cuts = cuts_of(mod)
    plan = plan_of(mod)
    unused = has_levels(imported.mod) and not how.on_levels
    notes = (*((cut_summary(cuts),) if cuts else ()), *((LEVELS_UNUSED,) if unused else ()), *plan.notes)
    plan = replace(
        plan,
        sparsify=how.sparsify,
        weights=how.weights,
        precision=how.precision,
        cuts=cuts,
        notes=notes,
        maps=profile,
    )
    calls = call_labels(mod)
    hoisted, constants = hoist_constants(mod)
    how.say("generate code")
    with inside_tvm("generating code"):
        with watched("code generation", how.progress), _argument_checks(hoisted):
            executable = relax.build(hoisted, how.target.tvm, relax_pipeline=how.target.pipeline)
        if how.measure:
            names = {layer.name for layer in plan.layers}
            plan = replace(plan, rest=rest_times(mod, executable, names, selector))
    manifest = Manifest(
        inputs=imported.inputs,
        outputs=imported.outputs,
        plan=plan,
        calls=tuple(calls),
        target=str(how.target),
        machine=machine_name(),
        flags=how.target.instruction_sets,
        architecture=how.target.architecture,
        threads=how.threads,
        tvm_version=str(tvm.__version__),
        sparseflow_version=sparseflow.__version__,
        weights=tuple(Signature(k, tuple(map(int, v.shape)), str(v.dtype)) for k, v in constants.items()),
    )
    with watched("linking the code", how.progress):
        return Engine(executable, constants, manifest)


@contextmanager
def _argument_checks(mod: tvm.IRModule) -> Iterator[None]:
    """TVM's checks of each kernel's arguments, left out if a kernel has more than `CHECKED_ARGUMENTS`.

    LLVM's time grows with the square of the checks: 40 s for one kernel with 300 arguments, 2 s without. ``main``
    checks the model's inputs all the same; the kernels' arguments are its own.
    """
    most = max((len(f.params) for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)), default=0)
    now = tvm.transform.PassContext.current()
    skip = {"tirx.disable_assert": True} if most > CHECKED_ARGUMENTS else {}
    with tvm.transform.PassContext(opt_level=now.opt_level, config={**now.config, **skip}):
        yield


def _write(folder: Path, phase: str, mod: tvm.IRModule) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{phase}.py").write_text(mod.script(show_meta=False))
    except OSError as error:
        raise CompileError(f"dump: {folder} cannot be written ({error}); choose another folder") from error


@contextmanager
def inside_tvm(doing: str) -> Iterator[None]:
    """Makes one line of an error inside TVM; ours pass as they are."""
    try:
        yield
    except SparseflowError:
        raise
    except (RuntimeError, ValueError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CompileError(
            f"{doing}: TVM cannot compile this model ({last}); --traceback shows where"
        ) from error
