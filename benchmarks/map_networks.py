"""Whole networks with and without the index of their feature maps, on real inputs, beside other engines.

    python benchmarks/map_networks.py                        # all cases; --cases resnet50-photographs,cifar10 picks
    python benchmarks/map_networks.py --resume --minutes 3   # goes on where it stopped

writes ``map_networks.json``, one record for each case. ``tools/fetch_data.sh resnet50 photographs cifar10`` fetches the
data. The CIFAR-10 networks are those that ``sparseflow prune recipes/cifar10_maps.toml -o runs/cifar10-maps`` leaves,
before and after its maps were made sparse, and ``recipes/cifar10_maps_and_blocks.toml`` with ``-o
runs/cifar10-maps-blocks`` (``--runs`` names the folder that holds both). Zoo networks have seeded random weights; their
maps are what such weights make of random inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import options
import torch

from sparseflow import zoo
from sparseflow.data import data_roots, load_data
from sparseflow.engine.measure.bench import BenchOptions
from sparseflow.engine.measure.peers import installed
from sparseflow.engine.target.machine import machine_name
from sparseflow.errors import DataError
from sparseflow.studies.map_networks import INDEXED, JUMPS, PLAIN, TOLERANCE, Subjects, compare
from sparseflow.studies.records import Records
from sparseflow.train.checkpoint import load_weights
from sparseflow.train.models import build_model
from sparseflow.zoo.pretrained import WEIGHTS, imagenet_resnet50, photographs

NAME = "map_networks"
CIFAR_IMAGES = 64
ZOO = ("resnet18", "resnet50", "vgg16", "mobilenet_v1", "mobilenet_v2", "bert_base")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--cases", default="", help="parts of case names, separated by commas")
    parser.add_argument("--against", default=",".join(installed()), help="peers, separated by commas")
    parser.add_argument(
        "--runs", default="runs", help="folder of the runs that trained the CIFAR-10 networks"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    peers = tuple(name for name in args.against.split(",") if name)
    how = BenchOptions(args.threads, peers, args.rounds, not args.no_measure)
    head = {"kind": "map-networks", "machine": machine_name(), "command": options.command(NAME, arguments)}
    records = Records(Path(args.out) / f"{NAME}.json", head, args.resume)
    cases = [
        (name, partial(_measure, make, how)) for name, make in _cases(Path(args.runs)).items()
        if options.named(name, args.cases)
    ]  # fmt: skip
    return records.run(cases, options.say, args.minutes)


def _measure(make: Callable[[], Subjects], how: BenchOptions) -> dict[str, Any]:
    return compare(make(), how, options.say)


def _cases(runs: Path) -> dict[str, Callable[[], Subjects]]:
    maps, both = runs / "cifar10-maps", runs / "cifar10-maps-blocks"
    found: dict[str, Callable[[], Subjects]] = {
        "resnet50-photographs": _resnet50,
        "cifar10-dense": partial(_cifar10, maps / "dense.pt", "dense"),
        "cifar10-maps": partial(_cifar10, maps / "model.pt2", "sparse maps"),
        "cifar10-maps-blocks": partial(_cifar10, both / "model.pt2", "sparse maps, blocks of weights"),
        "dense-maps-resnet18": _dense_maps,
    }
    return found | {f"zoo-{name}": partial(_zoo, name) for name in ZOO}


def _resnet50() -> Subjects:
    folder = next((root for root in data_roots() if (root / WEIGHTS).is_dir()), Path("data"))
    images, labels = photographs(folder)
    calls = tuple((image[None],) for image in images)
    return Subjects(
        "ResNet-50", "ImageNet (Keras)", "20 photographs", imagenet_resnet50(folder), calls, labels
    )


def _cifar10(path: Path, label: str) -> Subjects:
    data = load_data("cifar10")
    if not path.is_file():
        raise DataError(f"{path}: no such network; train it, or name the folder of the runs with --runs")
    if path.suffix == ".pt2":
        model = torch.export.load(path)
    else:
        model = build_model("cifar_net", data)
        load_weights(model, path)
        model.eval()
    mean, std = (np.array(s, np.float32).reshape(-1, 1, 1) * 255 for s in data.statistics())
    images = (data.test_images[:CIFAR_IMAGES].numpy() - mean) / std
    calls = tuple((np.ascontiguousarray(image[None], np.float32),) for image in images)
    labels = data.test_labels[:CIFAR_IMAGES].numpy()
    tolerance = JUMPS if path.suffix == ".pt2" else TOLERANCE
    what = f"{CIFAR_IMAGES} test images"
    return Subjects("cifar_net", f"trained, {label}", what, model, calls, labels, tolerance=tolerance)


def _zoo(name: str) -> Subjects:
    model, examples = zoo.build(name)
    return Subjects(f"zoo:{name}", "seeded random", "random", model, (tuple(x.numpy() for x in examples),))


def _dense_maps() -> Subjects:
    """ResNet-18 planned for maps of 15 % density, with biases that leave nearly no zeros."""
    model, examples = zoo.build("resnet18")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.fill_(4.0 * float(module.weight.abs().max()))
    calls = (tuple(x.numpy() for x in examples),)
    return Subjects(
        "zoo:resnet18, dense maps", "seeded random, biases raised", "random", model, calls, None, 0.15
    )


def table(records: Sequence[dict[str, Any]]) -> str:
    """The table of all records: median milliseconds and what the index gains, within one run each."""
    peers = list(dict.fromkeys(n for r in records for n in r["median_ms"] if n not in (INDEXED, PLAIN)))
    head = [
        "network",
        "weights",
        "inputs",
        "map density",
        PLAIN,
        INDEXED,
        *peers,
        "gain",
        "over the best peer",
        "layers",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for r in records:
        times = [
            f"{r['median_ms'][n]:.2f} ms" if n in r["median_ms"] else "–" for n in (PLAIN, INDEXED, *peers)
        ]
        density = f"{r['map_density']:.0%}"
        if r["claimed_density"] is not None:
            density += f", planned for {r['claimed_density']:.0%}"
        over = r["gain_over_best_peer"]
        carried = sum(layer["indexed"] for layer in r["layers"])
        cells = [
            r["name"], r["weights"], r["data"], density, *times, f"**{r['gain']:.2f}×**",
            "–" if over is None else f"{over:.2f}×", f"{carried} of {len(r['layers'])}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(records: Sequence[dict[str, Any]]) -> str:
    """The table's essence, for real inputs only."""
    lines = [
        "| network | map density | without | with map index | gain | over the best peer |",
        "|" + "---|" * 6,
    ]
    for r in records:
        if r["data"] != "random":
            times = " | ".join(f"{r['median_ms'][name]:.2f} ms" for name in (PLAIN, INDEXED))
            gains = f"**{r['gain']:.2f}×** | {r['gain_over_best_peer']:.2f}×"
            lines.append(f"| {r['name']}, {r['weights']} | {r['map_density']:.0%} | {times} | {gains} |")
    return "\n".join([*lines, "", "One thread, fp32, batch 1; the best peer runs dense."]) + "\n"


def layers(records: Sequence[dict[str, Any]]) -> str:
    """For each network with any index: the layers that read an indexed map."""
    parts = []
    for r in records:
        chosen = [layer for layer in r["layers"] if layer["indexed"]]
        if not chosen:
            continue
        head = "| layer | map | density | kernel on the index | ms | kernel without | ms |"
        lines = [f"{r['name']}, {r['weights']}:", "", head, "|" + "---|" * 7]
        for layer in chosen:
            size = "×".join(map(str, layer["map"][1:]))
            lines.append(
                f"| {layer['name']} | {size} | {layer['density']:.0%} | `{layer['kernel']}` | {layer['time_ms']:.3f} | "
                f"`{layer['without']}` | {layer['without_ms']:.3f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n" if parts else "No layer of these networks is faster with an index.\n"


if __name__ == "__main__":
    sys.exit(main())
