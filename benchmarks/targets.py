"""The same networks compiled for several targets of this machine, run in turn: what narrower vectors cost.

    python benchmarks/targets.py --models resnet50 --sparsify block:4x1@0.9,unstructured@0.9 --out benchmarks/results

writes ``targets.md`` (the table) and ``targets.json``. The first target is what the others are compared with. Each
engine's kernels are measured for its own target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sparseflow
from sparseflow.cli.models import ModelRequest, load_model, random_inputs
from sparseflow.engine.target.machine import machine_name

NAME = "targets"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every model and sparsity on every target."""
    args = _parser().parse_args(arguments)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for model in args.models.split(","):
        for sparsify in args.sparsify.split(","):
            print(f"{model} {sparsify}", file=sys.stderr, flush=True)
            records.append(run(model, sparsify, args.targets.split(","), args.threads, args.rounds))
            (out / f"{NAME}.json").write_text(json.dumps(records, indent=1) + "\n")
            (out / f"{NAME}.md").write_text(markdown(records))
    print(markdown(records))
    return 0


def run(model: str, sparsify: str, targets: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    """Median seconds of each target's engine, and its largest difference from the first one's result.

    The engines are called in turn, three calls a round, so that a slow spell of the machine hits all alike.
    """
    loaded = load_model(ModelRequest(f"zoo:{model}", None if sparsify == "none" else sparsify, (), {}, 1))
    imported = loaded.imported()
    engines = {t: sparseflow.compile(imported, target=t, threads=threads) for t in targets}
    first = next(iter(engines.values()))
    inputs = random_inputs(first.inputs)
    results = {t: np.asarray(_first(engine(*inputs))) for t, engine in engines.items()}
    expected = results[targets[0]]
    scale = max(float(np.abs(expected).max()), 1e-30)
    samples: dict[str, list[float]] = {t: [] for t in targets}
    for _ in range(rounds):
        for t, engine in engines.items():
            samples[t].append(engine.measure(*inputs, repeats=3, warmup=1).median_s)
    return {
        "model": model,
        "sparsify": sparsify,
        "threads": threads,
        "machine": machine_name(),
        "median_s": {t: statistics.median(s) for t, s in samples.items()},
        "difference": {t: float(np.abs(y - expected).max()) / scale for t, y in results.items()},
    }


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The table: median milliseconds, how many times as long as the first target, and the results' difference."""
    targets = list(records[0]["median_s"])
    header = [
        "model",
        "weights",
        "threads",
        *targets,
        *(f"{t} / {targets[0]}" for t in targets[1:]),
        "difference",
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for r in records:
        times = r["median_s"]
        cells = [
            r["model"],
            r["sparsify"],
            str(r["threads"]),
            *(f"{times[t] * 1e3:.2f} ms" for t in targets),
            *(f"**{times[t] / times[targets[0]]:.2f}×**" for t in targets[1:]),
            f"{max(r['difference'].values()):.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Median of interleaved calls, fp32, batch 1, {records[0]['machine']}; random weights pruned by magnitude. "
        "The difference is the largest of any output from the first target's, relative to the largest output."
    )
    return "\n".join([*lines, "", notes, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="resnet50", help="zoo names, separated by commas")
    parser.add_argument(
        "--sparsify", default="block:4x1@0.9,unstructured@0.9", help="STRUCTURE@SPARSITY or none"
    )
    parser.add_argument("--targets", default="avx512,avx2", help="targets that this machine runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of one call")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each engine")
    parser.add_argument("--out", default="benchmarks/results", help="folder for the table and the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
