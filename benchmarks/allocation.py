"""Latency-aware allocation against uniform sparsity on CIFAR-10, at equal measured latency; and others beside.

Four steps, each of which goes on where it was stopped: ``scan`` measures loss increases, ``fit`` finds budgets so that
the engines take equally long (masks by magnitude, nothing trained), ``train`` retrains every arm alike, ``measure``
times the engines in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import options
import torch

from sparseflow.core.codec import encode
from sparseflow.core.files import write_json
from sparseflow.core.structures import parse_sparsify
from sparseflow.data import load_data
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.target.machine import machine_name
from sparseflow.studies.allocation import Content, Subject, fitted, interleaved, recipe_of, scanned
from sparseflow.studies.records import Records
from sparseflow.train import LogProgress, parse_recipe, run_recipe
from sparseflow.train.allocation import STRATEGIES, LatencyAware

NAME = "allocation"
CHOICES = ("unstructured", "block:4x1", "pattern:4+connectivity")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one step; the exit code is the number of arms that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=("scan", "fit", "train", "measure"))
    parser.add_argument(
        "--dense", type=Path, default=Path("runs/cifar10-dense/dense.pt"), help="state dictionary"
    )
    parser.add_argument(
        "--table", type=Path, default=Path("runs/allocation/table.json"), help="of sparseflow tune"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/allocation"))
    parser.add_argument(
        "--uniform", default="block:4x1@0.85,unstructured@0.9", help="arms of uniform sparsity"
    )
    parser.add_argument(
        "--strategies", default="erk,global-magnitude", help="further arms, at the first one's sparsity"
    )
    parser.add_argument(
        "--shares", default="1,0.85", help="latencies of latency-aware arms, of the first arm's"
    )
    parser.add_argument("--estimate", default="measured", help="of the loss increase")
    parser.add_argument("--samples", type=int, default=128, help="that the loss increase is estimated from")
    parser.add_argument("--arms", default="", help="train only arms whose name contains one of these")
    parser.add_argument("--epochs", type=int, default=3, help="of retraining")
    args = parser.parse_args(arguments)
    return {"scan": scan, "fit": fit, "train": train, "measure": measure}[args.step](args)


def scan(args: argparse.Namespace) -> int:
    """The loss increase of every option; takes minutes, and needs no quiet machine."""
    subject, strategy = latency_aware(args)
    options.say(f"{sum(map(len, scanned(subject, strategy, scan_file(args))))} options")
    return 0


def fit(args: argparse.Namespace) -> int:
    """Latencies before training, and the recipes."""
    records = Records(
        args.out / "arms.json", {"kind": "allocation-arms", "machine": machine_name()}, resume=True
    )

    def known(allocation: Content, choose: Sequence[str]) -> dict[str, Any]:
        subject = Subject(recipe_of(args.dense, choose, allocation, args.epochs))
        strategy = STRATEGIES[allocation["strategy"]].model_validate(allocation)
        assigned = strategy.allocate(subject.problem)
        return record(subject.content, subject.latency(assigned), assigned)

    def matched(share: float) -> dict[str, Any]:
        target = share * records.cases[first]["latency"]["median_s"]
        subject, strategy = latency_aware(args)
        found = scanned(subject, strategy, scan_file(args))
        assigned, latency = fitted(subject, strategy, found, target, options.say)
        return record(subject.decided(assigned), latency, assigned)

    cases = []
    specs = [parse_sparsify(text) for text in args.uniform.split(",")]
    first = f"uniform {specs[0].text}"
    for spec in specs:
        budget = {"strategy": "uniform", "sparsity": spec.sparsity}
        cases.append((f"uniform {spec.text}", partial(known, budget, [str(spec.structure)])))
    cases += [
        (f"latency-aware {args.estimate} {s}", partial(matched, float(s))) for s in args.shares.split(",")
    ]
    for strategy in filter(None, args.strategies.split(",")):
        budget = {"strategy": strategy, "sparsity": specs[0].sparsity}
        cases.append((f"{strategy} {specs[0].text}", partial(known, budget, [str(specs[0].structure)])))
    with pinned(1):
        return records.run(cases, options.say)


def latency_aware(args: argparse.Namespace) -> tuple[Subject, LatencyAware]:
    """The network and the strategy; its budget is decided by ``fit``."""
    content = {
        "strategy": "latency",
        "table": str(args.table),
        "estimate": args.estimate,
        "samples": args.samples,
        "latency_ms": 1e3,
    }
    strategy = LatencyAware.model_validate(content)
    return Subject(recipe_of(args.dense, CHOICES, content, args.epochs)), strategy


def scan_file(args: argparse.Namespace) -> Path:
    """Where ``scan`` keeps its options."""
    return Path(args.out) / f"options-{args.estimate}.json"


def record(content: Content, latency: Any, assigned: Sequence[Any]) -> dict[str, Any]:
    """An arm as it stands in the file."""
    return {"recipe": content, "latency": encode(latency), "layers": [a.encoded() for a in assigned]}


def arms(args: argparse.Namespace) -> dict[str, Any]:
    """What ``fit`` wrote."""
    found = json.loads((args.out / "arms.json").read_text())["cases"]
    return {name: arm for name, arm in found.items() if options.named(name, args.arms)}


def folder(args: argparse.Namespace, name: str) -> Path:
    """Where an arm is trained."""
    return Path(args.out) / name.replace(" ", "-").replace(":", "-")


def train(args: argparse.Namespace) -> int:
    """Every arm retrained, each from the same dense network."""
    for name, arm in arms(args).items():
        recipe = parse_recipe(arm["recipe"])
        result = run_recipe(recipe, folder(args, name), progress=LogProgress(sys.stderr))
        options.say(f"{name}: {result.dense_accuracy:.2%} dense, {result.pruned_accuracy:.2%} pruned")
    return 0


def measure(args: argparse.Namespace) -> int:
    """Engines of all arms that are trained, timed in turn; a table on standard output."""
    done = {n: a for n, a in arms(args).items() if (folder(args, n) / "results.json").is_file()}
    data = load_data("cifar10")
    x = torch.zeros(1, *data.test_images.shape[1:])
    with pinned(1):
        times = interleaved([folder(args, n) / "model.pt2" for n in done], x, rounds=25)
    print(
        "| allocation | engine, ms | p10 to p90 | accuracy | of dense | weights kept |\n|---|---|---|---|---|---|"
    )
    cases = {}
    for (name, arm), latency in zip(done.items(), times, strict=True):
        result = json.loads((folder(args, name) / "results.json").read_text())
        kept = 1 / result["conv_compression"]
        cases[name] = {**arm, "latency": encode(latency), "accuracy": result["pruned_accuracy"], "kept": kept}
        cells = (
            f"{1e3 * latency.median_s:.3f}",
            f"{1e3 * latency.p10_s:.3f} to {1e3 * latency.p90_s:.3f}",
            f"{result['pruned_accuracy']:.2%}",
            f"{100 * (result['pruned_accuracy'] - result['dense_accuracy']):+.2f}",
            f"{kept:.1%}",
        )
        print(f"| {name} | " + " | ".join(cells) + " |")
    head = {"kind": "allocation-results", "machine": machine_name(), "cases": cases}
    write_json(args.out / "results.json", head)
    return 0


if __name__ == "__main__":
    sys.exit(main())
