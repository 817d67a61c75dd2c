"""ResNet-50 with its ImageNet weights, put on levels without training: what is left of its answers on photographs.

    python benchmarks/low_precision_imagenet.py

Data, calibration and comparison are those of ``one_shot_imagenet.py``. Biases are not corrected, which would take a
pass over the calibration images for each of 54 layers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from one_shot import answers
from one_shot_imagenet import images

from sparseflow.train.quantise import RoundSettings, round_network, rounded_maps
from sparseflow.zoo.pretrained import imagenet_resnet50

PLAIN = {"equalise": False, "correct_bias": False}
VARIANTS: dict[str, dict[str, object]] = {
    "8 bits": PLAIN,
    "8 bits, min-max": PLAIN | {"ranges": "min-max"},
    "8 bits, percentile": PLAIN | {"ranges": "percentile"},
    "8 bits, equal ranges": PLAIN | {"equalise": True},
    "weights in 6 bits two powers, maps in 8": PLAIN | {"bits": 6, "levels": "two-powers"},
}
"""Name → settings."""
HEAD = (
    "| weights and maps | photographs right | same answer: photographs | crops | pictures | CIFAR-10 |\n"
    "|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Round with each variant and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=32, help="calibration images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    folder, inputs, sets, right = images(args.samples)
    dense = [answers(imagenet_resnet50(folder), x) for x in sets]
    print(f"{HEAD}\n| float32 | {int((dense[0] == right).sum())} of {len(right)} | | | | |", flush=True)
    for name, settings in VARIANTS.items():
        model = imagenet_resnet50(folder)
        with rounded_maps(model, round_network(model, inputs, RoundSettings(**settings))):
            now = [answers(model, x) for x in sets]
        same = " | ".join(f"{float((a == b).float().mean()):.1%}" for a, b in zip(now, dense, strict=True))
        print(f"| {name} | {int((now[0] == right).sum())} of {len(right)} | {same} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
