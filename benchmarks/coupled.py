"""Filters pruned coupled (the same in all branches) against free (each layer its own, the compiler holds the unions).

Both from the same dense network, retrained alike; then the engines are timed in turn: of the masked models, and of the
coupled ones with their channels removed. ``train`` and ``measure`` go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import options
import torch

from sparseflow.data import load_data
from sparseflow.engine.compile import compile
from sparseflow.engine.measure.bench import pinned
from sparseflow.studies.allocation import interleaved
from sparseflow.train import LogProgress, parse_recipe, run_recipe
from sparseflow.train.checkpoint import export_model, load_weights
from sparseflow.train.models import build_model

Content = dict[str, Any]
MNIST: Content = {
    "seed": 1,
    "threads": 1,
    "data": {"name": "mnist5k", "batch_size": 64, "crop": 2},
    "model": {"name": "mnist_resnet"},
    "dense": [{"kind": "dense", "epochs": 8, "learning_rate": 0.05, "warmup": 1.0}],
    "retrain": {"learning_rate": 0.05, "warmup": 0.5},
}
CIFAR: Content = {
    "seed": 1,
    "threads": 1,
    "data": {"name": "cifar10", "batch_size": 256, "flip": "alternate", "crop": 2},
    "model": {"name": "cifar_net", "weights": "runs/cifar10-dense/dense.pt"},
    "dense": [],
    "retrain": {"learning_rate": 0.1, "warmup": 0.3, "precision": "bf16", "freeze": ["stem"]},
}
COMMON = {"label_smoothing": 0.1, "channels_last": True}
WAYS = ("free", "coupled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=("train", "measure"))
    parser.add_argument("--data", choices=("mnist5k", "cifar10"), default="mnist5k")
    parser.add_argument("--sparsities", default="0.5,0.7", help="of every layer's filters")
    parser.add_argument("--epochs", type=int, default=4, help="of retraining")
    parser.add_argument("--out", type=Path, default=Path("runs/coupled"))
    args = parser.parse_args(arguments)
    return {"train": train, "measure": measure}[args.step](args)


def cases(args: argparse.Namespace) -> list[tuple[str, str, Path]]:
    """(way, sparsity, folder) of every run."""
    found = [(way, sparsity) for sparsity in args.sparsities.split(",") for way in WAYS]
    return [(way, sparsity, args.out / args.data / f"{way}-{sparsity}") for way, sparsity in found]


def recipe_of(args: argparse.Namespace, way: str, sparsity: str) -> Content:
    """The recipe of one run; the dense stage is the same for all, and taken over from the first."""
    base = MNIST if args.data == "mnist5k" else CIFAR
    rule = {
        "layers": "features.*",
        "sparsify": f"filter@{sparsity}",
        "include": ["stem"],
        "coupled": way == "coupled",
    }
    dense = [stage | COMMON for stage in base["dense"]]
    retrain = {"kind": "retrain", "epochs": args.epochs, **COMMON, **base["retrain"]}
    return {
        "name": f"{way} filters, {args.data}, {sparsity}",
        **{key: base[key] for key in ("seed", "threads", "data", "model")},
        "rules": [rule],
        "stages": [*dense, {"kind": "magnitude"}, retrain],
    }


def train(args: argparse.Namespace) -> int:
    """Every case, the dense network once."""
    done: list[Path] = []
    for way, sparsity, folder in cases(args):
        recipe = parse_recipe(recipe_of(args, way, sparsity))
        result = run_recipe(recipe, folder, reuse=done, progress=LogProgress(sys.stderr))
        options.say(f"{recipe.name}: {result.dense_accuracy:.2%} dense, {result.pruned_accuracy:.2%} pruned")
        done.append(folder)
    return 0


def measure(args: argparse.Namespace) -> int:
    """A table of accuracy, multiply-accumulates and engine time on standard output."""
    shape = load_data(args.data).test_images.shape[1:]
    x, rows = torch.zeros(1, *shape), []
    for way, sparsity, folder in cases(args):
        result = json.loads((folder / "results.json").read_text())
        if not rows:
            rows.append(("dense", "", folder / "dense.pt2", result["dense_accuracy"]))
            export_dense(args, folder, rows[0][2])
        rows.append((f"{way}, masked", sparsity, folder / "model.pt2", result["pruned_accuracy"]))
        if way == "coupled":
            rows.append(("coupled, removed", sparsity, folder / "small.pt2", result["pruned_accuracy"]))
    with pinned(1):
        times = interleaved([path for _, _, path, _ in rows], x, rounds=25)
    print(
        "| filters | sparsity | accuracy | million MACs | engine, ms | of dense |\n|---|---|---|---|---|---|"
    )
    for (way, sparsity, path, accuracy), time in zip(rows, times, strict=True):
        macs = sum(layer.macs_computed for layer in compile(path).plan.layers) / 1e6
        share = time.median_s / times[0].median_s
        print(
            f"| {way} | {sparsity} | {accuracy:.2%} | {macs:.2f} | {1e3 * time.median_s:.4f} | {share:.2f} |"
        )
    return 0


def export_dense(args: argparse.Namespace, folder: Path, path: Path) -> None:
    """The dense network of a run, exported."""
    name = recipe_of(args, "free", "0.5")["model"]["name"]
    data = load_data(args.data)
    model = build_model(name, data)
    load_weights(model, folder / "dense.pt")
    export_model(model, (torch.zeros(1, *data.test_images.shape[1:]),), path)


if __name__ == "__main__":
    sys.exit(main())
