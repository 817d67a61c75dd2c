"""From a model to an engine: import, calibration, and all that `engine.build` does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm

from sparseflow.core.calibrated_ranges import CalibratedRanges
from sparseflow.core.map_profile import MapProfile
from sparseflow.core.map_ranges import MapRanges
from sparseflow.core.plan import Cut
from sparseflow.engine.build import Build, Progress, build, inside_tvm
from sparseflow.engine.calibrate import as_calls, faster_engine, measure_ranges, profile_maps
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.target.targets import resolve
from sparseflow.errors import CompileError
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.levels import has_levels
from sparseflow.passes.propagate import Propagate, cuts_of
from sparseflow.passes.watch import watched


def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    threads: int = 1,
    measure: bool = True,
    exact: bool = False,
    weights: str = Build.weights,
    precision: str = Build.precision,
    target: str | Mapping[str, Any] = "native",
    shapes: Mapping[str, Sequence[int]] | None = None,
    sparsify: str = "",
    calibration: MapProfile | CalibratedRanges | Iterable[Any] | None = None,
    ranges: str | MapRanges | os.PathLike[str] = Build.ranges,
    dump: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine of ``model`` for this machine, or for another.

    Parameters
    ----------
    model : nn.Module, ExportedProgram, ModelProto, path or Imported
        A module needs ``example_inputs``.
    example_inputs : tuple or list of tensors, optional
    threads : int
        Threads of one call: at most the CPUs here if kernels are measured, else up to 1024. On fewer CPUs an engine
        is right, and `Engine.measure` says how many it had.
    measure : bool
        Choose kernels by measurement on this machine (kept on disk); False, or a target that this machine cannot
        run: by the cost model.
    exact : bool
        Leave out kernels whose rounding error is larger than that of adding up the products (Winograd).
    weights : str
        Type in which weights are stored: ``float32``, ``bfloat16`` or ``float16``, which halve the bytes that layers
        bound by memory read. Weights are rounded to it; maps and sums stay float32.
    precision : str
        ``fp32``, or ``bf16``: convolutions and linear layers on vector lanes multiply pairs of bfloat16, with sums in
        float32, and the maps between them are stored so; or ``int8``: they multiply levels of 8 bits, maps with a scale
        and a zero point, weights with a step for each filter, which needs ``calibration`` unless the model is quantised
        already. The target needs such an instruction. ``auto``: int8 but for layers whose sums would move by more than
        5 % (root mean square, on the calibration inputs), which multiply bfloat16 or float32. Inputs and results stay
        float32.
    target : str or mapping
        ``native`` (this machine), ``avx512``, ``avx2``, ``neon``, or TVM's target as a dictionary,
        ``{"kind": "llvm", "mcpu": "znver4"}``.
    shapes : mapping, optional
        Shapes of an ONNX model's inputs, to bind free dimensions.
    sparsify : str
        Label of how the weights were pruned, noted in the plan.
    calibration : MapProfile, CalibratedRanges or iterable of example inputs, optional
        Real inputs of the compiled shapes, each one array or one for each input: they tell how sparse the feature
        maps are, and where a map is to carry an index of its zeros. A profile saves counting again; with inputs, and
        where kernels are measured, the whole engine is timed on them too, and left without index if that is faster.
        With ``precision="int8"`` they tell the ranges of the maps instead; `CalibratedRanges` saves measuring again.
    ranges : str, MapRanges or path
        How a range is drawn from the values seen: ``min-max``; ``percentile``, without the outermost thousandth of each
        side; or ``mse``, the least mean square of rounding and cutting off. Or what training has fixed, or the path
        of its ``quantisation.json``; the rest is drawn by ``min-max``.
    dump : path, optional
        Folder that receives the IR after each phase, constants left out.
    progress : callable, optional
        Told what is being done, and which step takes more than half a minute; without it that is a warning.

    Raises
    ------
    ImportModelError
        If the model cannot be read.
    CompileError
        If a layer or the target cannot be compiled, or an argument is none of those allowed.
    InputError
        If the calibration inputs do not fit the model.
    """
    method, trained = _ranges(ranges)
    how = Build(
        resolve(target), threads, measure, exact, sparsify, dump, progress, weights, precision, method
    )
    if how.on_levels:
        return _on_levels(model, example_inputs, shapes, how, calibration, trained)
    if isinstance(calibration, CalibratedRanges):
        raise CompileError(f"calibration by ranges with precision={how.precision!r}: they are for int8")
    calls = (
        calibration
        if calibration is None or isinstance(calibration, MapProfile)
        else list(as_calls(calibration))
    )
    if calls is not None and how.precision != Build.precision:
        raise CompileError(
            f"calibration with precision={how.precision!r}: only float32 maps carry an index; leave one out"
        )
    how.say("import")
    with watched("import", progress):
        imported = import_model(model, example_inputs, shapes)
    if measure and how.foreign:
        how.say(f"the cost model chooses: {how.foreign}")
    if calls is None or isinstance(calls, MapProfile):
        return build(imported, how, calls)
    # of a model for another machine the maps are counted on this one
    counts = replace(how, target=resolve("native"), measure=False) if how.foreign else how
    profile = profile_maps(imported, calls, counts)
    engine = build(imported, how, profile)
    if not how.measure or not any(layer.map_format for layer in engine.plan.layers):
        return engine
    how.say("time the engine with and without the index")
    return faster_engine(engine, build(imported, replace(how, dump=None)), calls)


def _ranges(given: str | MapRanges | os.PathLike[str]) -> tuple[str, MapRanges | None]:
    """How ranges are drawn, and what training has fixed."""
    if isinstance(given, MapRanges):
        return Build.ranges, given
    if isinstance(given, os.PathLike) or str(given).endswith(".json"):
        return Build.ranges, MapRanges.load(Path(given))
    return given, None


def _on_levels(
    model: Any,
    example_inputs: Sequence[Any] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    how: Build,
    calibration: MapProfile | CalibratedRanges | Iterable[Any] | None,
    trained: MapRanges | None,
) -> Engine:
    """The engine whose layers multiply levels of 8 bits."""
    how.say("import")
    with watched("import", how.progress):
        imported = import_model(model, example_inputs, shapes)
    if isinstance(calibration, MapProfile) or (calibration is None and not has_levels(imported.mod)):
        raise CompileError(
            f"precision={how.precision!r} needs to know between which numbers the maps lie; "
            "give calibration=[inputs, ...]"
        )
    if calibration is not None and not isinstance(calibration, CalibratedRanges):
        counts = replace(how, target=resolve("native")) if how.foreign else how
        calibration = measure_ranges(imported, calibration, counts, how.ranges, trained)
    return build(imported, how, ranges=calibration)


def cuts(imported: Imported) -> tuple[Cut, ...]:
    """What propagation takes from each layer of a model, without compiling it.

    Raises
    ------
    CompileError
        If the model's graph cannot be read.
    """
    with inside_tvm("propagation"):
        return cuts_of(tvm.transform.Sequential([Canonicalise(resolve("native")), Propagate()])(imported.mod))
