"""What do narrower weights buy? One network, its weights stored in each element type, engines called in turn.

    python benchmarks/weight_types.py --models vgg16,bert_base --sparsify block:4x1@0.9 --out benchmarks/results

writes one record of ``weight_types.json`` after each finished case; ``--resume`` keeps what is there. Every engine's
output is compared with the float32 engine's. ``benchmarks/render.py`` puts the table into the docs.
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
from sparseflow.core import ELEMENT_TYPES, FLOAT32
from sparseflow.core.plan import Measurement
from sparseflow.engine.measure.bench import interleave, pinned
from sparseflow.engine.target.machine import machine_name

NAME = "weight_types"
MODELS = ("vgg16",)
SPARSIFY = ("block:4x1@0.9", "unstructured@0.9")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME, choice=False)
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument(
        "--sparsify", default=",".join(SPARSIFY), help="STRUCTURE@SPARSITY, separated by commas; dense: none"
    )
    parser.add_argument("--types", default=",".join(ELEMENT_TYPES), help="element types beside float32")
    args = parser.parse_args(arguments)
    records = options.records(NAME, args, arguments)
    types = [FLOAT32.name, *(t for t in args.types.split(",") if t != FLOAT32.name)]
    cases = [
        (f"{model} {sparsify}", partial(run, model, sparsify, types, args.rounds))
        for model in args.models.split(",")
        for sparsify in args.sparsify.split(",")
    ]
    failed = records.run(cases, options.say, args.minutes)
    print(markdown(records.to_json()))
    return failed


def run(model: str, sparsify: str, types: Sequence[str], rounds: int) -> dict[str, Any]:
    """Milliseconds of each type's engine on one thread, and its largest difference from float32's output."""
    wanted = None if sparsify == "dense" else sparsify
    imported = load_model(ModelRequest(f"zoo:{model}", wanted, (), {}, 1)).imported()
    engines = [sparseflow.compile(imported, weights=name) for name in types]
    inputs = random_inputs(engines[0].inputs)
    outputs = [np.asarray(engine(*inputs)) for engine in engines]
    with pinned(1) as cores:
        samples = interleave([partial(engine, *inputs) for engine in engines], rounds, cores)
    scale = float(np.abs(outputs[0]).max())
    return {
        "model": model,
        "sparsify": sparsify,
        "threads": 1,
        "types": {
            name: {
                "ms": 1e3 * Measurement.of(sample, 1, machine_name()).median_s,
                "weight_bytes": sum(la.value_bytes + la.index_bytes for la in engine.plan.layers),
                "narrow_layers": sum("bits" in la.chosen.parameters for la in engine.plan.layers),
                "error": float(np.abs(output - outputs[0]).max()) / scale,
            }
            for name, sample, engine, output in zip(types, samples, engines, outputs, strict=True)
        },
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The table of all cases."""
    header = ["model", "weights", "stored as", "time", "speed-up", "bytes", "layers stored so", "difference"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for record in data["cases"].values():
        reference = record["types"][FLOAT32.name]["ms"]
        for name, found in record["types"].items():
            cells = [
                record["model"],
                f"`{record['sparsify']}`",
                name,
                f"{found['ms']:.2f} ms",
                f"{reference / found['ms']:.2f}×",
                f"{found['weight_bytes'] / 1e6:.1f} MB",
                "–" if name == FLOAT32.name else str(found["narrow_layers"]),
                "–" if name == FLOAT32.name else f"{found['error']:.1e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Median of interleaved calls, one thread, maps and sums float32, batch 1, {data['machine']}. Difference: the "
        "largest from the float32 engine's output, relative to its largest value. A layer keeps float32 weights where "
        "that is measured to be faster."
    )
    return "\n".join([*lines, "", notes, ""])


if __name__ == "__main__":
    sys.exit(main())
