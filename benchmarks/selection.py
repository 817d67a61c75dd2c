"""Can the choice of kernels be trusted? Engines of one model in turn: measured plan, cost model's plan, all-dense plan.

    python benchmarks/selection.py --models mobilenet_v1,resnet50 --sparsify unstructured@0.9 --out benchmarks/results

writes one record of ``selection.json`` after each finished case; ``--resume`` keeps what is there. The all-dense plan
is that of the same network with no zero in its weights. ``benchmarks/render.py`` puts the table into the docs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import options

import sparseflow
from sparseflow.cli.models import ModelRequest, load_model, random_inputs
from sparseflow.core.plan import Measurement
from sparseflow.engine.measure.bench import interleave, pinned
from sparseflow.engine.target.machine import machine_name

NAME = "selection"
MODELS = ("resnet18", "resnet50", "vgg16", "mobilenet_v1", "mobilenet_v2", "bert_base")
SPARSIFY = ("unstructured@0.9", "block:4x1@0.9")
WITHIN = 1.25  # of the measured plan's time
CLOSE = 0.15  # of the measured engine's time


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME, choice=False)
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument(
        "--sparsify", default=",".join(SPARSIFY), help="STRUCTURE@SPARSITY, separated by commas"
    )
    args = parser.parse_args(arguments)
    records = options.records(NAME, args, arguments)
    cases = [
        (f"{model} {sparsify}", partial(run, model, sparsify, args.rounds))
        for model in args.models.split(",")
        for sparsify in args.sparsify.split(",")
    ]
    failed = records.run(cases, options.say, args.minutes)
    print(markdown(records.to_json()))
    return failed


def run(model: str, sparsify: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of each plan's engine on one thread, and of the measured plan's own total."""
    sparse = load_model(ModelRequest(f"zoo:{model}", sparsify, (), {}, 1)).imported()
    dense = load_model(ModelRequest(f"zoo:{model}", None, (), {}, 1)).imported()
    engines = {
        "measured": sparseflow.compile(sparse),
        "predicted": sparseflow.compile(sparse, measure=False),
        "dense": sparseflow.compile(dense),
    }
    plan = engines["measured"].plan
    inputs = random_inputs(engines["measured"].inputs)
    with pinned(1) as cores:
        runs = [partial(engine, *inputs) for engine in engines.values()]
        samples = interleave(runs, rounds, cores)
    medians = [Measurement.of(s, 1, machine_name()).median_s for s in samples]
    return {
        "model": model,
        "sparsify": sparsify,
        "threads": 1,
        "ms": {name: 1e3 * s for name, s in zip(engines, medians, strict=True)},
        "planned_ms": {"layers": 1e3 * plan.layers_s, "rest": 1e3 * plan.rest_s},
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The table of all cases."""
    header = ["model", "weights", "measured plan", "planned / measured", "`--no-measure`", "all-dense plan"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for record in data["cases"].values():
        ms = record["ms"]
        ours = ms["measured"]
        planned = sum(record["planned_ms"].values()) / ours
        predicted, dense = ms["predicted"] / ours, ms["dense"] / ours
        cells = [
            record["model"],
            record["sparsify"],
            f"{ours:.2f} ms",
            f"{planned:.0%} {_mark(abs(planned - 1) <= CLOSE)}",
            f"{ms['predicted']:.2f} ms, {predicted:.2f}× {_mark(predicted <= WITHIN)}",
            f"{ms['dense']:.2f} ms, {dense:.2f}× {_mark(dense >= 1)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Median of interleaved calls, one thread, fp32, batch 1, {data['machine']}. ✓: the plan's total within "
        f"{CLOSE:.0%} of the engine's time, the cost model's plan at most {WITHIN:g} times the measured plan's, the "
        "all-dense plan not faster."
    )
    return "\n".join([*lines, "", notes, ""])


def _mark(reached: bool) -> str:
    return "✓" if reached else "✗"


if __name__ == "__main__":
    sys.exit(main())
