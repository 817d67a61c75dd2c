"""2:4 without training on ResNet-50 with its ImageNet weights: what is left of its answers on photographs.

    python benchmarks/one_shot_imagenet.py

``tools/fetch_data.sh resnet50 photographs cifar10 pictures stamps`` fetches weights and images. No ImageNet images are
at hand to calibrate on: calibration takes crops of the pictures in GCompris, and Tux Paint's stamps (cut-outs, most of
photographs) on such crops. Every fifth picture is kept out of it. Answers are compared on the 20 labelled photographs,
on crops of them, on the pictures that were kept out, and on CIFAR-10's test images, scaled up.
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
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sparseflow.core.structures import parse_sparsify
from sparseflow.data import data_roots, load_data
from sparseflow.errors import DataError
from sparseflow.train.methods import MaskedWeights, OneShot, method_of
from sparseflow.train.rules import Rule
from sparseflow.zoo.pretrained import BGR_MEAN, WEIGHTS, imagenet_resnet50, photographs

SIZE = 224
BATCH = 16
CROPS = 100
KEPT_OUT = 5
"""Every which picture is for the comparison only."""
SETTINGS = {"second_order": {"against_dense": True, "positions": 128}}
HEAD = (
    "| structure | method | photographs right | same answer: photographs | crops | pictures | CIFAR-10 |\n"
    "|---|---|---|---|---|---|---|"
)


def as_input(rgb: Tensor) -> Tensor:
    """Images (count, 3, h, w) with values in 0..255 as the network takes them: 224², BGR less the mean."""
    large = F.interpolate(rgb.float(), (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 255)
    return large.flip(1) - torch.tensor(BGR_MEAN).view(1, 3, 1, 1)


def crops(
    images: Sequence[Tensor],
    count: int,
    random: np.random.Generator,
    sides: tuple[float, float] = (0.5, 0.95),
) -> Tensor:
    """``count`` random square crops (3, side, side) of images (3, h, w), scaled to 224², half of them mirrored.

    ``sides`` are the least and the greatest side over the shorter side of an image.
    """
    found = []
    for i in range(count):
        image = images[i % len(images)]
        height, width = image.shape[1:]
        side = int(min(height, width) * random.uniform(*sides))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        piece = image[:, top : top + side, left : left + side][None].float()
        piece = F.interpolate(piece, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        found.append(piece.flip(3) if random.random() < 0.5 else piece)
    return torch.cat(found)


def files(name: str, pattern: str) -> list[Path]:
    """What ``tools/fetch_data.sh`` fetched as ``name``, in a fixed order."""
    found = [path for root in data_roots() for path in sorted((root / name).glob(pattern))]
    if not found:
        raise DataError(
            f"{name}: not below {', '.join(map(str, data_roots()))}; run tools/fetch_data.sh {name}"
        )
    return found


def pictures() -> tuple[list[Tensor], list[Tensor]]:
    """Pictures (3, h, w) with values in 0..255: those to calibrate on, and those to compare on."""
    found = []
    for path in files("pictures", "*.webp"):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((2 * SIZE, 2 * SIZE))
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return [x for i, x in enumerate(found) if i % KEPT_OUT], found[::KEPT_OUT]


def stamped(ground: Tensor, path: Path, random: np.random.Generator) -> Tensor:
    """The stamp in ``path`` somewhere on ``ground``; shape (1, 3, 224, 224)."""
    with Image.open(path) as opened:
        stamp = opened.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    scale = SIZE * random.uniform(0.5, 0.95) / max(stamp.size)
    width, height = (max(round(n * scale), 1) for n in stamp.size)
    stamp = stamp.resize((width, height), Image.Resampling.LANCZOS)
    whole = Image.fromarray(ground.permute(1, 2, 0).clamp(0, 255).byte().numpy())
    place = int(random.integers(SIZE - width + 1)), int(random.integers(SIZE - height + 1))
    whole.paste(stamp, place, stamp)
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1)[None].float()


def calibration(samples: int, images: Sequence[Tensor], random: np.random.Generator) -> list[Tensor]:
    """Batches of which one half are crops of ``images``, the other half stamps on them."""
    chosen = [images[i] for i in random.permutation(len(images))]
    stamps = files("stamps", "*.png")
    order = random.permutation(len(stamps))
    grounds = crops(chosen, samples // 2, random, (0.3, 0.6))
    put = [stamped(g, stamps[order[i % len(stamps)]], random) for i, g in enumerate(grounds)]
    mixed = torch.cat([crops(chosen, samples - len(put), random, (0.6, 1.0)), *put])
    return list(as_input(mixed)[random.permutation(samples)].split(BATCH))


def images(samples: int) -> tuple[Path, list[Tensor], list[list[Tensor]], Tensor]:
    """The folder of the weights, calibration images, test sets, and the right answers of the first."""
    folder = next((root for root in data_roots() if (root / WEIGHTS).is_dir()), Path("data"))
    found, labels = photographs(folder)
    seen, kept_out = pictures()
    batches = calibration(samples, seen, np.random.default_rng(1))
    return folder, batches, test_sets(found, kept_out, np.random.default_rng(0)), torch.from_numpy(labels)


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
    folder, batches, sets, right = images(args.samples)
    spec = parse_sparsify(args.sparsify)
    rules = [Rule("*", spec.structure, spec.density)]
    dense = [answers(imagenet_resnet50(folder), x) for x in sets]
    print(f"{HEAD}\n| dense | – | {int((dense[0] == right).sum())} of {len(right)} | | | | |", flush=True)
    for name in args.methods.split(","):
        kind, said = method_of(name)
        if not issubclass(kind, OneShot):
            parser.error(f"{name} needs training; choose a one-shot method")
        torch.manual_seed(0)
        model = imagenet_resnet50(folder)
        method = kind(model, rules, kind.Settings(**said | SETTINGS.get(name, {})))
        method.calibrate(batches)
        MaskedWeights(model, method.finish())
        now = [answers(model, x) for x in sets]
        same = " | ".join(f"{float((a == b).float().mean()):.1%}" for a, b in zip(now, dense, strict=True))
        hits = f"{int((now[0] == right).sum())} of {len(right)}"
        print(f"| {args.sparsify} | `{name}` | {hits} | {same} |", flush=True)
    return 0


def test_sets(
    images: npt.NDArray[np.float32], kept_out: Sequence[Tensor], random: np.random.Generator
) -> list[list[Tensor]]:
    """The photographs, crops of them, pictures cut square, and CIFAR-10's test images, in batches."""
    whole = torch.from_numpy(images)
    rgb = (whole + torch.tensor(BGR_MEAN).view(1, 3, 1, 1)).flip(1)
    parts = (
        whole,
        as_input(crops(list(rgb), CROPS, random)),
        as_input(crops(kept_out, len(kept_out), random, (1.0, 1.0))),
        as_input(load_data("cifar10").test_images[:CROPS]),
    )
    return [list(part.split(BATCH)) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
