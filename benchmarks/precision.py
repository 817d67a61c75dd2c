"""What does bfloat16 buy? Each network in float32 and in bfloat16, dense and pruned, engines called in turn.

    python benchmarks/precision.py --models resnet50,bert_base --out benchmarks/results

writes one record of ``precision.json`` after each finished network; ``--resume`` keeps what is there. Every engine's
output is compared with that of float32 on the same weights. Blocks of 4x1 are what float32 multiplies best, blocks of
4x2 what bfloat16 does, so each runs with its own. ``benchmarks/render.py`` puts the table into the docs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import options

import sparseflow
from sparseflow.cli.models import ModelRequest, load_model, random_inputs
from sparseflow.core.plan import Measurement
from sparseflow.engine.measure.bench import interleave, pinned
from sparseflow.engine.target.machine import machine_name

NAME = "precision"
MODELS = ("resnet50", "bert_base", "vgg16", "mobilenet_v1", "mobilenet_v2")
PAIRS = (("none", "none"), ("block:4x1@0.9", "block:4x2@0.9"), ("unstructured@0.9", "unstructured@0.9"))
"""Weights in float32 and in bfloat16."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME, choice=False)
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--weights", default="", help="parts of the weights' names, separated by commas")
    args = parser.parse_args(arguments)
    records = options.records(NAME, args, arguments)
    cases = [
        (f"{model} {narrow}", partial(run, model, (wide, narrow), args.rounds))
        for model in args.models.split(",")
        for wide, narrow in PAIRS
        if options.named(f"{wide} {narrow}", args.weights)
    ]
    failed = records.run(cases, options.say, args.minutes)
    print(markdown(records.to_json()))
    return failed


def run(model: str, weights: tuple[str, str], rounds: int) -> dict[str, Any]:
    """Milliseconds of both engines on one thread, and how far bfloat16 is from float32 on the same weights."""
    wide, narrow = (
        load_model(ModelRequest(f"zoo:{model}", None if w == "none" else w)).imported() for w in weights
    )
    engines = [sparseflow.compile(wide), sparseflow.compile(narrow, precision="bf16")]
    same = sparseflow.compile(narrow, measure=False)
    inputs = random_inputs(engines[0].inputs)
    results = [engine(*inputs) for engine in (engines[1], same)]
    found, expected = (np.asarray(r[0] if isinstance(r, list | tuple) else r) for r in results)
    with pinned(1) as cores:
        samples = interleave([partial(engine, *inputs) for engine in engines], rounds, cores)
    fp32, bf16 = (1e3 * Measurement.of(sample, 1, machine_name()).median_s for sample in samples)
    return {
        "model": model,
        "weights": list(weights),
        "fp32_ms": fp32,
        "bf16_ms": bf16,
        "narrow_layers": sum(layer.element == "bfloat16" for layer in engines[1].plan.layers),
        "layers": len(engines[1].plan.layers),
        "error": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The table of all cases."""
    header = [
        "model",
        "fp32 weights",
        "fp32",
        "bf16 weights",
        "bf16",
        "speed-up",
        "layers in bf16",
        "difference",
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for r in data["cases"].values():
        wide, narrow = ("dense" if w == "none" else f"`{w}`" for w in r["weights"])
        times = [f"{r['fp32_ms']:.2f} ms", f"{r['bf16_ms']:.2f} ms", f"{r['fp32_ms'] / r['bf16_ms']:.2f}×"]
        cells = [
            r["model"],
            wide,
            times[0],
            narrow,
            *times[1:],
            f"{r['narrow_layers']} of {r['layers']}",
            f"{r['error']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Median of interleaved calls, one thread, batch 1, random weights, {data['machine']}. Difference: the "
        "largest of the outputs from float32's on the weights of the bf16 column, relative to the largest output."
    )
    return "\n".join([*lines, "", notes, ""])


if __name__ == "__main__":
    sys.exit(main())
