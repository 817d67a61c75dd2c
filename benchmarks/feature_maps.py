"""Kernels on sparse feature maps: the map's zeros alone, the weights' alone, both together, beside dense kernels.

    python benchmarks/feature_maps.py --out benchmarks/results

The zeros of maps and weights are random and labelled so. Kernels that carry the map's index make the index of their
own output, whose cost is in their time. ``feature_maps.json`` is written after each case; ``--resume`` keeps what is
there. ``benchmarks/render.py`` puts the tables into ``docs/feature_maps.md``. About 10 minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import options

from sparseflow.core.codec import encode
from sparseflow.core.kernel_speed import Layer
from sparseflow.core.map_speed import DENSE
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.measure.map_timing import MapBench
from sparseflow.engine.target.machine import machine_name
from sparseflow.studies.kernel_results import FeatureMapResults
from sparseflow.studies.records import Records

NAME = "feature_maps"
CONVOLUTIONS = tuple(
    Layer(f"3x3 {c}→{c} @{size}²", f"3x3 @{size}²", c, c, size, size, 3)
    for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))
)
LINEAR = Layer("linear 4096→4096, 1 row", "linear, 1 row", 4096, 4096, 1, 1, op="linear")
MAP_DENSITIES = (0.5, 0.3, 0.2, 0.1)
BLOCKS = (128, 64, 32, 16)
PAIRS = ((0.75, 0.25), (0.75, 0.5), (0.9, 0.25))
"""Sparsity of the weights, density of the map."""
TILES = (0.5, 0.25, 0.1)
"""Fractions of tiles that are not all zero; half of their values are not."""


def cases() -> list[tuple[Layer, str, float, float]]:
    """Layer, structure of the weights, density of the map, fraction of tiles."""
    found = [(layer, DENSE, density, 1.0) for layer in (*CONVOLUTIONS, LINEAR) for density in MAP_DENSITIES]
    found += [(layer, DENSE, tiles / 2, tiles) for layer in CONVOLUTIONS[:2] for tiles in TILES]
    for sparsity, density in PAIRS:
        for block in BLOCKS:
            structure = f"block:{block}x1@{sparsity:g}"
            found += [(layer, structure, density, 1.0) for layer in CONVOLUTIONS if layer.filters >= block]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--layers", default="", help="names that contain one of these, separated by commas")
    parser.add_argument(
        "--structures", default="", help="names that contain one of these, separated by commas"
    )
    args = parser.parse_args(arguments)
    bench = MapBench(measure=not args.no_measure, rounds=args.rounds)
    head = FeatureMapResults(machine_name(), {}, options.command(NAME, arguments))
    records = Records(Path(args.out) / f"{NAME}.json", encode(head), args.resume)
    calls: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (
            f"{layer.name} {structure} map {density:g} tiles {tiles:g}",
            lambda case=(layer, structure, density, tiles): encode(bench.map_run(*case)),
        )
        for layer, structure, density, tiles in cases()
        if options.named(layer.name, args.layers) and options.named(structure, args.structures)
    ]
    with pinned(1):
        failed = records.run(calls, options.say, args.minutes)
    options.show(records.to_json(), records.path)
    return failed


if __name__ == "__main__":
    sys.exit(main())
