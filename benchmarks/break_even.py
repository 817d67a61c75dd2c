"""Break-even curves: speed-up over our own best dense kernel against density, per structure and class of layers.

    python benchmarks/break_even.py --out benchmarks/results

Each point times the most promising sparse kernels in turn with the dense one. ``break_even.json`` is written after each
case; ``--resume`` keeps what is there. About 8 minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import options

from sparseflow.core.codec import encode
from sparseflow.core.kernel_speed import Layer
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.measure.kernel_timing import KernelBench
from sparseflow.engine.target.machine import machine_name
from sparseflow.studies.kernel_results import BreakEvenResults
from sparseflow.studies.records import Records

NAME = "break_even"
LAYERS = (
    Layer("1x1 256→256 @56²", "1x1, large map", 256, 256, 56, 56),
    Layer("1x1 512→512 @7²", "1x1, small map", 512, 512, 7, 7),
    Layer("3x3 64→64 @56²", "3x3, large map", 64, 64, 56, 56, 3),
    Layer("3x3 256→256 @14²", "3x3, small map", 256, 256, 14, 14, 3),
    Layer("768→768, 128 rows", "linear, 128 rows", 768, 768, 1, 128, op="linear"),
    Layer("768→768, 1 row", "linear, 1 row", 768, 768, 1, 1, op="linear"),
)
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
ANY_SPARSITY = ("unstructured", "block:2x1", "block:4x1", "block:16x1")
NM = ("nm:3:4", "nm:2:4", "nm:1:4", "nm:1:8", "nm:1:16")
PATTERN = "pattern:4+connectivity"
PATTERN_SPARSITIES = (0.56, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)  # four of nine are kept by the pattern alone


def structures(layer: Layer, sparsities: Sequence[float]) -> list[tuple[str, str]]:
    """(curve, STRUCTURE@SPARSITY) of every point of a layer."""
    found = [(name, f"{name}@{s:g}") for name in ANY_SPARSITY for s in sparsities]
    if layer.kernel == 3:
        found += [(PATTERN, f"{PATTERN}@{s:g}") for s in PATTERN_SPARSITIES]
    return found + [("nm", name) for name in NM]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--layers", default="", help="classes that contain one of these, separated by commas")
    parser.add_argument(
        "--structures", default="", help="curves that contain one of these, separated by commas"
    )
    parser.add_argument(
        "--sparsities", default=",".join(map(str, SPARSITIES)), help="of unstructured and block curves"
    )
    args = parser.parse_args(arguments)
    sparsities = [float(text) for text in args.sparsities.split(",")]
    bench = KernelBench(measure=not args.no_measure, rounds=args.rounds)
    head = BreakEvenResults(machine_name(), {}, options.command(NAME, arguments))
    records = Records(Path(args.out) / f"{NAME}.json", encode(head), args.resume)
    cases = [
        (f"{layer.name} {text}", lambda layer=layer, t=text, c=curve: encode(bench.point(layer, t, c)))
        for layer in LAYERS
        if options.named(layer.group, args.layers)
        for curve, text in structures(layer, sparsities)
        if options.named(curve, args.structures)
    ]
    with pinned(1):
        failed = records.run(cases, options.say, args.minutes)
    options.show(records.to_json(), records.path)
    return failed


if __name__ == "__main__":
    sys.exit(main())
