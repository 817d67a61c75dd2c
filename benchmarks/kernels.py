"""Kernel efficiency: useful FLOPs of each layer and structure over the core's measured FMA peak, with rooflines.

    python benchmarks/kernels.py --out benchmarks/results

measures the core's limits, then takes the selector's choice for every layer and structure and times it in turn with
our best dense kernel and the FMA peak. ``kernels.json`` is written after each case; ``--resume`` keeps what is there.
``benchmarks/render.py`` puts tables and figures into the docs. About 5 minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import options

from sparseflow.core.codec import encode
from sparseflow.core.kernel_speed import Layer
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.measure.core_limits import measure_limits
from sparseflow.engine.measure.kernel_timing import KernelBench
from sparseflow.studies.kernel_results import KernelResults
from sparseflow.studies.records import Records

NAME = "kernels"
LAYERS = tuple(
    Layer(f"{k}x{k} {c}→{m} @{size}²", f"{k}x{k} @{size}²", c, m, size, size, k)
    for k, c, m, size in (
        (1, 256, 256, 56), (1, 512, 512, 28), (1, 512, 256, 28), (1, 1024, 256, 14), (1, 2048, 512, 7),
        (3, 64, 64, 56), (3, 128, 128, 28), (3, 256, 256, 14), (3, 512, 512, 7),
    )
)  # fmt: skip
STRUCTURES = (
    "dense", "unstructured@0.9", "block:2x1@0.9", "block:4x1@0.9", "block:8x1@0.9", "column@0.9", "nm:2:4", "nm:1:4",
    "filter@0.5", "channel@0.5",
)  # fmt: skip
STRUCTURES_3X3 = (
    "pattern:4+connectivity@0.877", "unstructured@0.877", "column@0.877", "connectivity@0.9",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--layers", default="", help="names that contain one of these, separated by commas")
    parser.add_argument("--structures", default="", help="STRUCTURE@SPARSITY or dense, separated by commas")
    args = parser.parse_args(arguments)
    layers = [layer for layer in LAYERS if options.named(layer.name, args.layers)]
    bench = KernelBench(measure=not args.no_measure, rounds=args.rounds)
    with pinned(1):
        limits = measure_limits(bench.target)
        head = KernelResults(limits.machine, limits, {}, options.command(NAME, arguments))
        records = Records(Path(args.out) / f"{NAME}.json", encode(head), args.resume)
        cases = [
            (f"{layer.name} {structure}", lambda layer=layer, s=structure: encode(bench.run(layer, s)))
            for layer in layers
            for structure in (
                args.structures.split(",") if args.structures
                else STRUCTURES + (STRUCTURES_3X3 if layer.kernel == 3 else ())
            )
        ]  # fmt: skip
        failed = records.run(cases, options.say, args.minutes)
    options.show(records.to_json(), records.path)
    return failed


if __name__ == "__main__":
    sys.exit(main())
