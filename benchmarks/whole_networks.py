"""Whole networks, ours beside the peers: every (model, sparsity, threads) in a process of its own.

    python benchmarks/whole_networks.py --models resnet50,bert_base --sparsify none,block:4x1@0.9 \
        --threads 1 --out benchmarks/results

writes ``whole_networks.md`` (the table) and ``whole_networks.json`` (every record of ``sparseflow bench``)
after each finished run, so a stopped one leaves what it has; ``--resume`` keeps what is there already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = ("resnet18", "resnet50", "vgg16", "mobilenet_v1", "mobilenet_v2", "bert_base")
SPARSIFY = ("none", "unstructured@0.9", "block:4x1@0.9")
PEERS = ("torch", "onnxruntime", "openvino")
NAME = "whole_networks"


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    sparsify: str
    threads: int

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        return f"{self.model} {self.sparsify} {self.threads}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    args = _parser().parse_args(arguments)
    cases = [
        Case(model, sparsify, int(threads))
        for threads in args.threads.split(",")
        for model in args.models.split(",")
        for sparsify in args.sparsify.split(",")
    ]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    store = out / f"{NAME}.json"
    records: dict[str, Any] = json.loads(store.read_text()) if args.resume and store.is_file() else {}
    failed = 0
    for i, case in enumerate(cases):
        if case.key in records:
            continue
        print(f"[{i + 1}/{len(cases)}] {case.key}", file=sys.stderr, flush=True)
        record, error = run(case, args.against, args.rounds, args.wrapper.split())
        if record is None:
            failed += 1
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            continue
        records[case.key] = record
        store.write_text(json.dumps(records, indent=1) + "\n")
        (out / f"{NAME}.md").write_text(markdown(list(records.values())))
    print(markdown(list(records.values())))
    return failed


def run(case: Case, against: str, rounds: int, wrapper: Sequence[str] = ()) -> tuple[Any | None, str]:
    """The record of one ``sparseflow bench`` in a fresh process, or None and the error's last line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [
            *wrapper, sys.executable, "-m", "sparseflow.cli.main", "bench", f"zoo:{case.model}",
            "--threads", str(case.threads), "--against", against, "--rounds", str(rounds),
            "--json", str(path),
        ]  # fmt: skip
        if case.sparsify != "none":
            command += ["--sparsify", case.sparsify]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return json.loads(path.read_text()), ""


def markdown(records: Sequence[Any]) -> str:
    """The table of all records: median milliseconds, and how many times faster than the best peer ours is."""
    if not records:
        return "no run has finished\n"
    peers = list(dict.fromkeys(r["engine"] for record in records for r in record["results"][1:]))
    header = ["model", "weights", "threads", "sparseflow", *peers, "against the best", "max relative error"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for record in records:
        times = {r["engine"]: r["latency_ms"]["median"] for r in record["results"]}
        speedup = record["speedup_vs_best_peer"]
        cells = [
            record["model"].removeprefix("zoo:"),
            record["sparsify"] or "dense",
            str(record["threads"]),
            *(f"{times[name]:.2f} ms" if name in times else "–" for name in ("sparseflow", *peers)),
            f"**{speedup:.2f}×**" if speedup is not None else "–",
            f"{record['results'][0]['max_relative_error']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = ", ".join(sorted({record["machine"] for record in records}))
    versions = ", ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
    notes = (
        f"Median of interleaved calls, fp32, batch 1, {machines}; {versions}. Weights are seeded random "
        "numbers; sparse ones are pruned by magnitude without retraining, stem, depthwise and classifier "
        "dense. All engines get the same weights and input; ratios are within one run."
    )
    return "\n".join([*lines, "", notes, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--sparsify", default=",".join(SPARSIFY), help="STRUCTURE@SPARSITY or none")
    parser.add_argument("--threads", default="1", help="thread counts, separated by commas")
    parser.add_argument("--against", default=",".join(PEERS), help="peers, separated by commas")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each engine in a run")
    parser.add_argument("--out", default="benchmarks/results", help="folder for the table and the records")
    parser.add_argument("--resume", action="store_true", help="keep records that are already in --out")
    parser.add_argument(
        "--wrapper", default="", help="command that each run is started with, such as nice -n -5"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
