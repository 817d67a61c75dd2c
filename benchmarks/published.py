"""Published speed-ups of sparse convolutions in TVM, beside ours: each over its own dense code.

    python benchmarks/published.py --out benchmarks/results

TVM PR 8605: four 3x3 layers, batch 10, blocks of 16x1. TVM PR 8065: the 1x1 layers of MobileNetV2, blocks of 4x1.
``published.json`` is written after each case; ``--resume`` keeps what is there. About 4 minutes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import options

from sparseflow.core.codec import encode
from sparseflow.core.kernel_speed import Layer
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.measure.kernel_timing import KernelBench
from sparseflow.engine.target.machine import machine_name
from sparseflow.studies.kernel_results import PublishedPoint, PublishedResults
from sparseflow.studies.records import Records

NAME = "published"
BATCH = 10
PR_8605 = "TVM PR 8605 (Xeon 6248, 1 thread, batch 10)"
PR_8065 = "TVM PR 8065 (MobileNetV2's 1x1 convolutions)"
LAYERS_8605 = tuple(
    Layer(f"3x3 {c}→{c} @{size}²", "3x3", c, c, size, size, 3, BATCH)
    for c, size in ((64, 56), (128, 28), (256, 14), (512, 7))
)
PUBLISHED_8605 = {
    (64, 0.9): 3.5, (64, 0.8): 2.35, (64, 0.7): 1.71, (64, 0.6): 1.38,
    (512, 0.9): 4.0, (512, 0.8): 2.4, (512, 0.7): 1.95, (512, 0.6): 1.63,
}  # fmt: skip
SPARSITIES_8605 = (0.9, 0.8, 0.7, 0.6)
PUBLISHED_8065 = {0.4: 1.0, 0.9: 2.0}  # break-even near 40 %, twice as fast at 90 %
SPARSITIES_8065 = (0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def mobilenet_v2_layers() -> Counter[Layer]:
    """The 1x1 convolutions of MobileNetV2 at 224², each with how often it stands there.

    References
    ----------
    Sandler et al., *MobileNetV2*, CVPR 2018, table 2.
    """
    found: Counter[Layer] = Counter()

    def add(channels: int, filters: int, size: int) -> None:
        found[Layer(f"1x1 {channels}→{filters} @{size}²", "1x1", channels, filters, size, size)] += 1

    channels, size = 32, 112
    for expand, filters, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for i in range(repeats):
            if expand > 1:
                add(channels, channels * expand, size)
            size //= stride if i == 0 else 1
            add(channels * expand, filters, size)
            channels = filters
    add(channels, 1280, size)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--layers", default="", help="names that contain one of these, separated by commas")
    parser.add_argument("--only", choices=("8605", "8065"), help="one of the two pull requests")
    args = parser.parse_args(arguments)
    bench = KernelBench(measure=not args.no_measure, rounds=args.rounds)
    head = PublishedResults(machine_name(), {}, options.command(NAME, arguments))
    records = Records(Path(args.out) / f"{NAME}.json", encode(head), args.resume)
    cases: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if args.only != "8065":
        cases += [
            (f"8605 {layer.name} {s:g}", lambda layer=layer, s=s: encode(layer_8605(bench, layer, s)))
            for layer in LAYERS_8605
            if options.named(layer.name, args.layers)
            for s in SPARSITIES_8605
        ]
    if args.only != "8605":
        cases += [
            (
                f"8065 {layer.name} {s:g}",
                lambda layer=layer, n=n, s=s: encode(layer_8065(bench, layer, n, s)),
            )
            for layer, n in mobilenet_v2_layers().items()
            if options.named(layer.name, args.layers)
            for s in SPARSITIES_8065
        ]
    with pinned(1):
        failed = records.run(cases, options.say, args.minutes)
    options.show(records.to_json(), records.path)
    return failed


def layer_8605(bench: KernelBench, layer: Layer, sparsity: float) -> PublishedPoint:
    """One cell of the first table."""
    ours = bench.point(layer, f"block:16x1@{sparsity:g}")
    return PublishedPoint(PR_8605, sparsity, PUBLISHED_8605.get((layer.channels, sparsity)), ours)


def layer_8065(bench: KernelBench, layer: Layer, times: int, sparsity: float) -> PublishedPoint:
    """One layer of a row of the second table; the published figure is the network's."""
    ours = bench.point(layer, f"block:4x1@{sparsity:g}")
    return PublishedPoint(PR_8065, sparsity, PUBLISHED_8065.get(sparsity), ours, "mobilenet_v2", times)


if __name__ == "__main__":
    sys.exit(main())
