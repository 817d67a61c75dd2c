"""Single layers in int8: useful operations over the core's measured peak, and beside the same weights in float32.

    python benchmarks/int8_kernels.py --out benchmarks/results

takes the selector's kernel for every layer and structure in both types and times them in turn with a loop of nothing
but products of bytes. ``int8_kernels.json`` is written after each case; ``--resume`` keeps what is there. Weights are
random; bias, ReLU and the rounding of the result are in the times. ``benchmarks/render.py`` puts the table into the
docs. About 5 minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import options

from sparseflow.core.element_type import FLOAT32, INT8, UINT8
from sparseflow.core.kernel_speed import GIGA, Layer
from sparseflow.core.steps import filter_steps, on_levels
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.measure.core_limits import dot_probe
from sparseflow.engine.measure.kernel_timing import random_weight, workload_of
from sparseflow.engine.target.machine import machine_name
from sparseflow.engine.target.targets import host_target
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.tuning.selector import Selector, time_interleaved, trials
from sparseflow.kernels.weight import LayerWeight

NAME = "int8_kernels"
CONVOLUTIONS = (
    (3, 64, 64, 56), (3, 128, 128, 28), (3, 256, 256, 14), (3, 512, 512, 7),
    (1, 256, 256, 56), (1, 64, 256, 56), (1, 512, 512, 28), (1, 1024, 256, 14),
)  # fmt: skip
"""Side of the kernel, channels, filters, side of the map."""
LAYERS = (
    *(Layer(f"{k}x{k} {c}→{m} @{size}²", f"{k}x{k}", c, m, size, size, k) for k, c, m, size in CONVOLUTIONS),
    Layer("linear 4096→11008, 1 row", "one row", 4096, 11008, 1, 1, op="linear"),
)
STRUCTURES = ("dense", "block:4x4@0.9", "unstructured@0.9")
ONE_ROW = ("dense", "unstructured@0.5", "unstructured@0.9")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME, choice=False)
    parser.add_argument("--layers", default="", help="names that contain one of these, separated by commas")
    args = parser.parse_args(arguments)
    records = options.records(NAME, args, arguments)
    selector = Selector(host_target(), machine_name(), progress=options.say)
    cases = [
        (f"{layer.name} {structure}", partial(run, selector, layer, structure, args.rounds))
        for layer in LAYERS
        if options.named(layer.name, args.layers)
        for structure in (ONE_ROW if layer.op == "linear" else STRUCTURES)
    ]
    with pinned(1):
        failed = records.run(cases, options.say, args.minutes)
    print(markdown(records.to_json()))
    return failed


def run(selector: Selector, layer: Layer, structure: str, rounds: int) -> dict[str, Any]:
    """Both kernels' times, the useful operations of the one in int8 and the peak, of one interleaved run."""
    target: Target = selector.target
    weight = random_weight(layer, structure)
    plain = workload_of(layer, weight, target)
    levels = on_levels(weight, filter_steps(weight)).reshape(plain.weight_shape)
    result = FLOAT32 if layer.op == "linear" else UINT8
    quantised = replace(plain, maps=UINT8, weights=INT8, result=result).with_zeros_of(levels)
    kernels, chosen = [], []
    for workload, values in ((quantised, levels), (plain, weight.reshape(plain.weight_shape))):
        stored = LayerWeight(values, workload.weight_shape)
        best = selector.choose(workload, stored, f"{layer.name} {structure}").best
        kernels += trials(target, workload, [best], stored)
        chosen.append(best.template)
    peak = dot_probe(target)
    int8_s, fp32_s, peak_s = time_interleaved([*kernels, peak], rounds)
    density = float(np.mean(weight != 0))
    return {
        "layer": layer.name,
        "structure": structure,
        "kernels": chosen,
        "int8_us": 1e6 * int8_s,
        "fp32_us": 1e6 * fp32_s,
        "useful_gops": density * layer.flops / int8_s * GIGA,
        "peak_gops": peak.work / peak_s * GIGA,
        "weight_gbs": weight.size / int8_s * GIGA,
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The table of all cases."""
    header = ["layer", "weights", "int8", "useful GOP/s", "of the peak", "float32", "faster", "kernel"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for r in data["cases"].values():
        share = "–" if "row" in r["layer"] else f"{r['useful_gops'] / r['peak_gops']:.0%}"
        times = f"{r['int8_us']:.1f} µs", f"{r['useful_gops']:.0f}", share, f"{r['fp32_us']:.1f} µs"
        cells = [
            r["layer"],
            f"`{r['structure']}`",
            *times,
            f"{r['fp32_us'] / r['int8_us']:.2f}×",
            r["kernels"][0],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"One thread, {data['machine']}; medians of kernels in turn. Useful operations: two for each weight that is "
        "not zero and output. One row is bound by the bytes of its weights."
    )
    return "\n".join([*lines, "", notes, ""])


if __name__ == "__main__":
    sys.exit(main())
