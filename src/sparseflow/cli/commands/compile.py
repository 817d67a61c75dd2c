"""``sparseflow compile``: a model → an engine on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli import options, output
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.core.codec import encode
from sparseflow.core.plan import Plan


def command(
    model: options.ModelArgument,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write the engine to.")
    ],
    sparsify: options.SparsifyOption = None,
    include: options.IncludeOption = None,
    shape: options.ShapeOption = None,
    batch: options.BatchOption = 1,
    threads: options.ThreadsOption = 1,
    no_measure: options.NoMeasureOption = False,
    exact: options.ExactOption = False,
    weights: options.WeightsOption = Plan.weights,
    precision: options.PrecisionOption = Plan.precision,
    ranges: options.RangesOption = "min-max",
    calibrate: options.CalibrateOption = None,
    samples: options.SamplesOption = 32,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="native (this machine), avx512, avx2 or neon (aarch64).")
    ] = "native",
    cxx: Annotated[
        str | None,
        typer.Option(metavar="COMPILER", help="C++ compiler that links the engine for the target."),
    ] = None,
    dump: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the IR after each phase here.")
    ] = None,
    json: options.JsonOption = None,
) -> None:
    """Compile MODEL for this machine, or another (--target), and save the engine.

    Zeros in the weights are found and used, whoever put them there. Every layer's kernel is chosen by
    measuring the candidates here; choices are kept on disk, so the next compile of the same shapes is quick.
    For a target that this machine cannot run the cost model chooses. With --calibrate DATA a feature map may
    carry an index of its zeros too; the engine keeps that only if it was measured to be faster.

    **Examples**

        sparseflow compile pruned.pt2 -o pruned.engine
        sparseflow compile model.onnx --shape input=1,3,224,224 --threads 2 -o model.engine
        sparseflow compile zoo:resnet50 --sparsify block:4x1@0.9 -o resnet50.engine
        sparseflow compile zoo:vgg16 --sparsify block:4x1@0.9 --weights bfloat16 -o vgg16.engine
        sparseflow compile zoo:resnet50 --sparsify block:4x2@0.9 --precision bf16 -o resnet50.engine
        sparseflow compile pruned.pt2 --precision int8 --calibrate cifar10 --ranges mse -o pruned.engine
        sparseflow compile runs/cifar10-maps/model.pt2 --calibrate cifar10 -o maps.engine
        sparseflow compile pruned.pt2 --target neon -o pruned-arm.engine
    """
    from sparseflow import compile as compile_model
    from sparseflow.cli.commands.explain import layer_table
    from sparseflow.engine.target.targets import linker, resolve

    shapes = options.parse_shapes(shape)
    machine = resolve(target)
    linker(type(machine), machine.architecture, cxx)  # a missing compiler is told now, not after minutes
    start = time.perf_counter()
    with output.progress("compile") as say:
        loaded = load_model(ModelRequest(model, sparsify, tuple(include or ()), shapes, batch))
        imported = loaded.imported()
        engine = compile_model(
            imported,
            threads=threads,
            measure=not no_measure,
            exact=exact,
            weights=weights,
            precision=precision,
            calibration=loaded.calibration(imported.inputs, calibrate, samples, precision),
            ranges=ranges,
            target=target,
            sparsify=loaded.sparsified.label if loaded.sparsified is not None else "",
            dump=dump,
            progress=say,
        )
        engine.save(out, cxx)
    seconds = time.perf_counter() - start
    data = {"model": model, "engine": str(out), "seconds": seconds, "plan": encode(engine.plan)}
    if output.write_json(data, json):
        return
    console = output.stdout()
    console.print(layer_table(engine.plan))
    console.print(f"{model} → {out} in {seconds:.0f} s; sparseflow explain {out} says why")
