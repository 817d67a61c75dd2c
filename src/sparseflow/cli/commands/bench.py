"""``sparseflow bench``: ours beside other engines, on the same weights and input."""

from __future__ import annotations

from typing import Annotated

import typer

from sparseflow.cli import options, output
from sparseflow.cli.calibration import calibration_calls
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.core.plan import Plan


def command(
    model: options.ModelArgument,
    sparsify: options.SparsifyOption = None,
    include: options.IncludeOption = None,
    shape: options.ShapeOption = None,
    batch: options.BatchOption = 1,
    threads: options.ThreadsOption = 1,
    against: Annotated[
        str,
        typer.Option(
            metavar="PEERS",
            help="Engines to compare with, separated by commas; '' for none. Those in -int8 quantise the model first.",
        ),
    ] = "torch,onnxruntime,openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine; engines alternate.")] = 9,
    no_measure: options.NoMeasureOption = False,
    exact: options.ExactOption = False,
    calibrate: options.CalibrateOption = None,
    samples: options.SamplesOption = 32,
    precision: options.PrecisionOption = Plan.precision,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest relative difference of outputs, 0.001 by default, 0.05 in bf16, 0.2 in int8. Networks with "
            "thresholds need more: they jump there. Peers in int8 are not held to it.",
        ),
    ] = None,
    json: options.JsonOption = None,
) -> None:
    """Time MODEL in our engine and in others, interleaved in one run, outputs compared first.

    The process is pinned to as many cores as threads. Times are of whole calls; a ratio holds within its run.
    Zoo weights are seeded random numbers, and --sparsify prunes by magnitude without retraining: that shows
    speed, not accuracy. With --calibrate DATA the call that is timed is DATA's first batch, and peers in int8 take
    their ranges from all of it. Errors are relative to torch in float32.

    **Examples**

        sparseflow bench zoo:resnet50 --sparsify unstructured@0.9
        sparseflow bench model.onnx --shape input=1,3,224,224 --threads 2 --against onnxruntime
        sparseflow bench runs/cifar10-maps/model.pt2 --calibrate cifar10 --tolerance 0.1
        sparseflow bench zoo:bert_base --sparsify block:4x1@0.9 --json bert.json
        sparseflow bench zoo:resnet50 --sparsify block:4x2@0.9 --precision bf16
        sparseflow bench zoo:mobilenet_v2 --sparsify block:4x4@0.9 --precision int8 --against openvino-int8,openvino
    """
    from sparseflow.engine.measure.bench import BenchOptions, bench
    from sparseflow.engine.measure.peers import Subject

    shapes = options.parse_shapes(shape)
    with output.progress("bench") as say:
        loaded = load_model(ModelRequest(model, sparsify, tuple(include or ()), shapes, batch))
        imported = loaded.imported()
        calls = calibration_calls(calibrate, imported.inputs, samples)
        inputs = loaded.inputs(imported.inputs) if calls is None else calls[0]
        wanted = BenchOptions(
            threads, options.parse_names(against), rounds, not no_measure, exact, tolerance, calls, precision
        )
        subject = Subject(model, loaded.model, inputs, loaded.sparsify, loaded.weights, imported)
        result = bench(subject, wanted, say)
    missing = "\n".join(f"{name} left out: {reason}" for name, reason in result.skipped)
    output.show_results(result.to_json(), model, missing, json)
