"""2:4 without training on ResNet-50 with its ImageNet weights: what is left of its answers on photographs.

    python benchmarks/one_shot_imagenet.py

``tools/fetch_data.sh resnet50 photographs cifar10`` fetches weights and images. No ImageNet images are at hand to
calibrate on: calibration takes CIFAR-10's training images, scaled up, and crops of the two photographs that
scikit-learn carries. Answers are compared on the 20 labelled photographs, on crops of them, and on CIFAR-10's test
images, scaled up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from one_shot import answers
from torch import Tensor
from torch.nn import functional as F

from sparseflow.core.structures import parse_sparsify
from sparseflow.data import data_roots, load_data
from sparseflow.train.methods import METHODS, MaskedWeights, OneShot
from sparseflow.train.rules import Rule
from sparseflow.zoo.pretrained import BGR_MEAN, WEIGHTS, imagenet_resnet50, photographs

SIZE = 224
BATCH = 16
CROPS = 100
HEAD = (
    "| structure | method | photographs right | same answer: photographs | crops | CIFAR-10 |\n"
    "|---|---|---|---|---|---|"
)


def as_input(rgb: Tensor) -> Tensor:
    """Images (count, 3, h, w) with values in 0..255 as the network takes them: 224², BGR less the mean."""
    large = F.interpolate(rgb.float(), (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 255)
    return large.flip(1) - torch.tensor(BGR_MEAN).view(1, 3, 1, 1)


def crops(images: Sequence[Tensor], count: int, random: np.random.Generator) -> Tensor:
    """``count`` random square crops (3, side, side) of images (3, h, w), scaled to 224², half of them mirrored."""
    found = []
    for i in range(count):
        image = images[i % len(images)]
        height, width = image.shape[1:]
        side = int(min(height, width) * random.uniform(0.5, 0.95))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        piece = image[:, top : top + side, left : left + side][None].float()
        piece = F.interpolate(piece, (SIZE, SIZE), mode="bilinear", align_corners=False)
        found.append(piece.flip(3) if random.random() < 0.5 else piece)
    return torch.cat(found)


def calibration(samples: int, random: np.random.Generator) -> list[Tensor]:
    """Batches of which a quarter of the images are crops of photographs."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    cut = crops(photos, samples // 4, random)
    small = load_data("cifar10").train_images[: samples - len(cut)]
    mixed = torch.cat([as_input(small), as_input(cut)])[random.permutation(samples)]
    return list(mixed.split(BATCH))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune with each method and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sparsify", default="nm:2:4", help="STRUCTURE@SPARSITY of all layers but the stem and fc"
    )
    parser.add_argument("--methods", default="magnitude,wanda,second_order", help="comma-separated")
    parser.add_argument("--samples", type=int, default=128, help="calibration images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(0)
    folder = next((root for root in data_roots() if (root / WEIGHTS).is_dir()), Path("data"))
    found, labels = photographs(folder)
    batches = calibration(args.samples, random)
    sets = _test_sets(found, random)
    spec = parse_sparsify(args.sparsify)
    rules = [Rule("*", spec.structure, spec.density)]
    right, dense = torch.from_numpy(labels), [answers(imagenet_resnet50(folder), x) for x in sets]
    print(f"{HEAD}\n| dense | – | {int((dense[0] == right).sum())} of {len(right)} | | | |", flush=True)
    for name in args.methods.split(","):
        if not issubclass(METHODS[name], OneShot):
            parser.error(f"{name} needs training; choose a one-shot method")
        torch.manual_seed(0)
        model = imagenet_resnet50(folder)
        method = METHODS[name](model, rules)
        method.calibrate(batches)
        MaskedWeights(model, method.finish())
        now = [answers(model, x) for x in sets]
        same = " | ".join(f"{float((a == b).float().mean()):.1%}" for a, b in zip(now, dense, strict=True))
        hits = f"{int((now[0] == right).sum())} of {len(right)}"
        print(f"| {args.sparsify} | `{name}` | {hits} | {same} |", flush=True)
    return 0


def _test_sets(images: npt.NDArray[np.float32], random: np.random.Generator) -> list[list[Tensor]]:
    """The photographs, crops of them, and CIFAR-10's test images, in batches."""
    whole = torch.from_numpy(images)
    rgb = (whole + torch.tensor(BGR_MEAN).view(1, 3, 1, 1)).flip(1)
    parts = (
        whole,
        as_input(crops(list(rgb), CROPS, random)),
        as_input(load_data("cifar10").test_images[:CROPS]),
    )
    return [list(part.split(BATCH)) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
