"""Calibration: a model run on real inputs, the non-zeros of every layer's input counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from sparseflow.core.calibrated_ranges import CalibratedRanges, LayerRanges, Range, RangeCounter
from sparseflow.core.element_type import ELEMENT_TYPES
from sparseflow.core.map_profile import MapCounter, MapProfile
from sparseflow.core.map_ranges import SUFFIX, MapRanges
from sparseflow.engine.build import Build, build, inside_tvm
from sparseflow.engine.frontends.importer import Imported
from sparseflow.engine.layer_error import LayerError
from sparseflow.engine.runtime.engine import Engine
from sparseflow.engine.runtime.manifest import Signature
from sparseflow.engine.runtime.memory import host_arrays
from sparseflow.engine.target.targets import resolve
from sparseflow.errors import CompileError, FormatError, InputError
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.density import ExposedMaps, MapPlace, expose_maps
from sparseflow.passes.ops import LayerAttrs, weight_of
from sparseflow.passes.propagate import Propagate

Array = npt.NDArray[Any]
TURNS = 9
MARGIN = 0.02
"""What the index has to save of a whole call to stay."""


def profile_maps(imported: Imported, inputs: Iterable[Any], how: Build | None = None) -> MapProfile:
    """The density of every layer's input over ``inputs``: mean, spread, spatial structure.

    Parameters
    ----------
    imported : Imported
    inputs : iterable
        For each call one array, or one for each input of the model, of the shapes that the model was imported with.
    how : Build, optional
        Threads and target of the engine that counts; default: one thread, this machine. Its kernels are those that
        the cost model ranks first.

    Returns
    -------
    MapProfile
        One record for each layer with weights, in order.

    Raises
    ------
    InputError
        If ``inputs`` is empty, or an array does not fit the model.
    CompileError
        If the model cannot be compiled.
    """
    exposed, calls = _exposed(imported, inputs, how)
    counters = [MapCounter(layer.name, layer.shape) for layer in exposed.layers]
    count = 0
    for results, arrays in calls:
        for counter, layer in zip(counters, exposed.layers, strict=True):
            counter.add(layer.source.of(results, arrays))
        count += 1
    return MapProfile(tuple(counter.result() for counter in counters), count)


def measure_ranges(
    imported: Imported,
    inputs: Iterable[Any],
    how: Build | None = None,
    method: str = Build.ranges,
    trained: MapRanges | None = None,
) -> CalibratedRanges:
    """Between which numbers every layer's maps lie over ``inputs``.

    Parameters
    ----------
    imported, inputs, how
        As for `profile_maps`.
    method : str
        One of `RANGES`: ``min-max``, ``percentile`` or ``mse``.
    trained : MapRanges, optional
        What training has fixed, by the names of weights; these are taken as they are.

    Returns
    -------
    CalibratedRanges
        One record for each layer with weights, in order.

    Raises
    ------
    InputError
        If ``inputs`` is empty, or an array does not fit the model.
    CompileError
        If the model cannot be compiled, a map is not finite, or training has fixed the range of another's.
    """
    exposed, calls = _exposed(imported, inputs, how, all_maps=True)
    fixed = {r.layer: Range(r.low, r.high) for r in trained.layers} if trained is not None else {}
    strange = fixed.keys() - {layer.name.removesuffix(SUFFIX) for layer in exposed.layers}
    if strange:
        known = ", ".join(layer.name for layer in exposed.layers[:3])
        raise CompileError(f"ranges: {min(strange)} is no layer of this model, whose are {known}, …")
    counters: dict[MapPlace, RangeCounter] = {}
    errors = [LayerError(LayerAttrs.of(x.call).workload, weight_of(x.call)) for x in exposed.layers]
    count = 0
    for results, arrays in calls:
        for layer, error in zip(exposed.layers, errors, strict=True):
            error.add(layer.source.of(results, arrays))
            for place in (layer.source, layer.result, layer.residual):
                if place is not None and counters.setdefault(place, RangeCounter()).calls == count:
                    try:
                        counters[place].add(place.of(results, arrays))
                    except FormatError as found:
                        raise CompileError(f"calibration: layer {layer.name}: {found}") from found
        count += 1
    drawn = {place: counter.range(method) for place, counter in counters.items()}
    named = ((layer.source, layer.name.removesuffix(SUFFIX)) for layer in exposed.layers)
    drawn |= {place: fixed[name] for place, name in named if name in fixed}
    layers = (
        LayerRanges(
            layer.name,
            drawn[layer.source],
            drawn[layer.result or layer.source],
            drawn[layer.residual] if layer.residual is not None else None,
            error.relative(drawn[layer.source]),
        )
        for layer, error in zip(exposed.layers, errors, strict=True)
    )
    return CalibratedRanges(tuple(layers), method, count)


def _exposed(
    imported: Imported, inputs: Iterable[Any], how: Build | None, all_maps: bool = False
) -> tuple[ExposedMaps, Iterator[tuple[Sequence[Array], Sequence[Array]]]]:
    """A model's maps, and for each call of ``inputs`` the results that hold them and the inputs."""
    inputs = as_calls(inputs)
    how = replace(how or Build(resolve("native")), measure=False, dump=None, precision=Build.precision)
    with inside_tvm("calibration"):
        canonicalise = Canonicalise(how.target, how.threads, ELEMENT_TYPES[how.weights])
        mod = tvm.transform.Sequential([canonicalise, Propagate()])(imported.mod)
        exposed = expose_maps(mod, all_maps)
    outputs = tuple(Signature(f"map{i}", *kind) for i, kind in enumerate(exposed.types))
    engine = build(replace(imported, mod=exposed.mod, outputs=outputs), how) if outputs else None
    if engine is None:
        how.say("calibrate: no layer reads another's result, so that only the model's own inputs are counted")

    def calls() -> Iterator[tuple[Sequence[Array], Sequence[Array]]]:
        count = 0
        for call in inputs:
            arrays = host_arrays(_inputs(call), imported.inputs)
            results = engine(*arrays) if engine is not None else ()
            yield results if isinstance(results, tuple) else (results,), arrays
            count += 1
            how.say(f"calibrate: {count} calls")
        if not count:
            raise InputError("calibration: no inputs given; give at least one example")

    return exposed, calls()


def as_calls(calibration: Any) -> Iterator[Any]:
    """The calls to calibrate with, one after the other.

    Raises
    ------
    InputError
        If it is no collection of inputs.
    """
    if isinstance(calibration, str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration: found {type(calibration).__name__}; allowed: a MapProfile, or inputs of several calls as "
            "[x1, x2]"
        )
    try:
        return iter(calibration)
    except TypeError as error:  # an array without axes
        raise InputError(f"calibration: {error}; allowed: inputs of several calls as [x1, x2]") from error


def faster_engine(indexed: Engine, plain: Engine, calls: Sequence[Any]) -> Engine:
    """``indexed``, unless ``plain`` is as fast on ``calls``; the plan then says so.

    Both take turns, so that a slow spell of the machine hits both.
    """
    samples: dict[str, list[float]] = {"indexed": [], "plain": []}
    for turn in range(TURNS):
        inputs = _inputs(calls[turn % len(calls)])
        for name, engine in (("indexed", indexed), ("plain", plain)):
            samples[name].append(engine.measure(*inputs, repeats=5, warmup=1).median_s)
    with_s, without_s = (float(np.median(samples[name])) for name in ("indexed", "plain"))
    measured = (
        f"whole engine measured: {with_s * 1e3:.2f} ms with the index, {without_s * 1e3:.2f} ms without"
    )
    if with_s < (1.0 - MARGIN) * without_s:
        return indexed.with_plan(replace(indexed.plan, notes=(*indexed.plan.notes, measured)))
    layers = tuple(
        replace(layer, map_density=known.map_density, map_note=known.map_note or f"no index: {measured}")
        for layer, known in zip(plain.plan.layers, indexed.plan.layers, strict=True)
    )
    notes = (*plain.plan.notes, f"map index left out: {measured}")
    return plain.with_plan(replace(plain.plan, layers=layers, notes=notes, maps=indexed.plan.maps))


def batches(
    data: Sequence[Array], shapes: Sequence[tuple[int, ...]], limit: int
) -> Iterator[tuple[Array, ...]]:
    """Calls of a model's shapes out of arrays that hold many examples, at most ``limit`` examples.

    A last part that fills no batch is left out, unless there is nothing else: then its examples are repeated.

    Raises
    ------
    InputError
        If the arrays do not fit the model's inputs.
    """
    if len(data) != len(shapes) or any(
        a.shape[1:] != tuple(s[1:]) for a, s in zip(data, shapes, strict=True)
    ):
        found = ", ".join(str(a.shape) for a in data)
        wanted = ", ".join(str(("count", *s[1:])) for s in shapes)
        raise InputError(f"calibration: arrays of shape {found} given; the model takes {wanted}")
    count, batch = min(len(data[0]), limit), shapes[0][0]
    if count == 0:
        raise InputError("calibration: no examples given; at least one is needed")
    order = np.arange(max(count // batch, 1) * batch) % count
    for start in range(0, len(order), batch):
        yield tuple(np.ascontiguousarray(a[order[start : start + batch]]) for a in data)


def _inputs(call: Any) -> tuple[Any, ...]:
    return tuple(call) if isinstance(call, tuple | list) else (call,)
