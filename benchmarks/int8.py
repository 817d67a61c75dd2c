"""Whole networks in int8, ours beside the int8 peers and the dense float32 ones, each model in a process of its own.

    python benchmarks/int8.py --models resnet50,bert_base --out benchmarks/results

writes one record of ``int8.json`` after each finished network; ``--resume`` keeps what is there. Weights are random:
all engines have the same, each quantises them with its own tool. ``benchmarks/render.py`` puts the table into the docs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import options
import whole_networks
from whole_networks import Case

from sparseflow.engine.measure.peers import PEERS, installed
from sparseflow.errors import SparseflowError

NAME = "int8"
MODELS = ("resnet50", "bert_base", "vgg16", "mobilenet_v1", "mobilenet_v2")
SPARSIFY = ("none", "block:4x4@0.9")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME, choice=False)
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--sparsify", default=",".join(SPARSIFY), help="prunings, separated by commas")
    parser.add_argument("--against", default="", help="peers; by default all dense ones that are installed")
    args = parser.parse_args(arguments)
    records = options.records(NAME, args, arguments)
    cases = [
        (f"{model} {sparsify}", partial(run, Case(model, sparsify, 1), args.against or peers(), args.rounds))
        for model in args.models.split(",")
        for sparsify in args.sparsify.split(",")
    ]
    failed = records.run(cases, options.say, args.minutes)
    print(markdown(records.to_json()))
    return failed


def peers() -> str:
    """The int8 peers whose packages are here, and the dense float32 ones."""
    dense = [name for name in installed() if name not in whole_networks.SPARSE_PEERS and name != "torch"]
    return ",".join([*installed(quantised=True), *dense])


def run(case: Case, against: str, rounds: int) -> dict[str, Any]:
    """The record of one network; of its plan what `whole_networks.slim` keeps."""
    record, error = whole_networks.run(case, against, rounds, precision="int8")
    if record is None:
        raise SparseflowError(error)
    elements = [layer["element"] for layer in record["plan"]["layers"]]
    slim = whole_networks.slim(record)
    return {**slim, "layers_in_int8": elements.count("uint8"), "layers": len(elements)}


def markdown(data: Mapping[str, Any]) -> str:
    """The table of all cases: milliseconds, errors from float32 torch, and how many times faster ours is."""
    header = [
        "model",
        "weights",
        "ours",
        "error",
        "best int8 peer",
        "its error",
        "faster",
        "best fp32 peer",
        "faster",
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for r in data["cases"].values():
        ours, *others = r["results"]
        cells = [r["model"], f"`{r['sparsify']}`" if r["sparsify"] else "dense", _ms(ours), _error(ours)]
        for quantised in (True, False):
            times = {o["engine"]: o for o in others if PEERS[o["engine"]].quantised is quantised}
            if not times:
                cells += ["–"] * (3 if quantised else 2)
                continue
            best = min(times.values(), key=_median)
            bar = _median(best)
            if r["model"] == "vgg16" and "openvino" in times:
                bar = min(bar, _median(times["openvino"]) / whole_networks.FULL_MNN_VGG16)
            cells.append(f"{_ms(best)} ({best['engine']})")
            cells += [_error(best)] if quantised else []
            cells.append(f"{bar / _median(ours):.2f}×")
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Median of interleaved calls, one thread, batch 1, random weights and inputs, {data['machine']}. Errors: the "
        "largest difference of the outputs from float32 torch's, relative to the largest output. VGG-16's float32 bar "
        f"is at most OpenVINO's time / {whole_networks.FULL_MNN_VGG16}, as in the table of whole networks."
    )
    return "\n".join([*lines, "", notes, ""])


def _median(result: Mapping[str, Any]) -> float:
    return float(result["latency_ms"]["median"])


def _ms(result: Mapping[str, Any]) -> str:
    return f"{_median(result):.2f} ms"


def _error(result: Mapping[str, Any]) -> str:
    return f"{result['max_relative_error']:.1e}"


if __name__ == "__main__":
    sys.exit(main())
