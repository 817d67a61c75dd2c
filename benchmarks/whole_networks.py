"""Whole networks, ours beside the peers: every (model, sparsity, threads) in a process of its own.

    python benchmarks/whole_networks.py --models resnet50,bert_base --sparsify none,block:4x1@0.9 \
        --threads 1 --out benchmarks/results

writes ``whole_networks.md`` (the table) and ``whole_networks.json`` (of every record of ``sparseflow bench`` what
`slim` keeps) after each finished run, so a stopped one leaves what it has; ``--resume`` keeps what is there already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow.core.codec import decode
from sparseflow.core.plan import Plan
from sparseflow.engine.measure.peers import installed

MODELS = ("resnet18", "resnet50", "vgg16", "mobilenet_v1", "mobilenet_v2", "bert_base")
SPARSIFY = ("none", "unstructured@0.9", "block:4x1@0.9", "unstructured@0.95")
NAME = "whole_networks"
OURS = "sparseflow"
SPARSE_PEERS = ("mnn-sparse",)
TARGETS = {  # times faster than the best dense fp32 peer
    "resnet50": (3.8, 6.0, 6.0),
    "vgg16": (2.1, 3.6, 3.3),
    "mobilenet_v1": (1.8, 2.5, None),
    "mobilenet_v2": (1.4, 1.8, None),
    "bert_base": (4.0, 6.5, 6.0),
}
TARGET_SPARSIFY = ("unstructured@0.9", "block:4x1@0.9", "unstructured@0.95")
PATTERN = "pattern:4+connectivity@0.877"
FULL_MNN_VGG16 = 2.1  # OpenVINO's time over that of an MNN built with AVX-512, which no package index carries


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
        record, error = run(case, args.against or peers_for(case), args.rounds, args.wrapper.split())
        if record is None:
            failed += 1
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            continue
        records[case.key] = slim(record)
        write(store, records)
        (out / f"{NAME}.md").write_text(markdown(list(records.values())))
    print(markdown(list(records.values())))
    return failed


def run(
    case: Case, against: str, rounds: int, wrapper: Sequence[str] = (), precision: str = Plan.precision
) -> tuple[Any | None, str]:
    """The record of one ``sparseflow bench`` in a fresh process, or None and the error's last line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [
            *wrapper, sys.executable, "-m", "sparseflow.cli.main", "bench", f"zoo:{case.model}",
            "--threads", str(case.threads), "--against", against, "--rounds", str(rounds),
            "--json", str(path), "--precision", precision,
        ]  # fmt: skip
        if case.sparsify != "none":
            command += ["--sparsify", case.sparsify]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return json.loads(path.read_text()), ""


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its plan reduced to what was chosen, and times in milliseconds.

    ``plan`` then holds ``layers``, {name: [kernel, ms]}, and ``rest``, {kernel between the layers: [calls, ms of one]}.
    """
    plan = decode(Plan, record["plan"])
    layers = {layer.name: [layer.chosen.label, _ms(layer.chosen.time_s)] for layer in plan.layers}
    rest = {r.kernel: [r.calls, _ms(r.time_s)] for r in plan.rest}
    return {**record, "plan": {"target": plan.target, "layers": layers, "rest": rest}}


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def write(path: Path, records: Mapping[str, Any]) -> None:
    """One line for each entry of a record, so that a changed run is a readable change of the file."""
    parts = []
    for key, record in records.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
        parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def peers_for(case: Case) -> str:
    """All installed peers, with torch and the sparse runs only where they are needed.

    Torch, the reference of the dense rows, is never the fastest; a sparse run of dense weights is a dense run.
    """
    left_out = SPARSE_PEERS if case.sparsify == "none" else ("torch",)
    return ",".join(name for name in installed() if name not in left_out)


def markdown(records: Sequence[Any]) -> str:
    """The table of all records: median milliseconds, and how many times faster ours is than the best others.

    The best dense peer is the fastest that does not use the zeros; VGG-16 meets at least OpenVINO / 2.1 (see TARGETS).
    """
    if not records:
        return "no run has finished\n"
    peers = list(dict.fromkeys(r["engine"] for record in records for r in record["results"][1:]))
    header = [
        "model",
        "weights",
        "threads",
        OURS,
        *peers,
        "× best dense",
        "× best sparse",
        "planned / measured",
        "max relative error",
    ]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for record in records:
        times = _medians(record)
        cells = [
            _model(record),
            record["sparsify"] or "dense",
            str(record["threads"]),
            *(f"{times[name]:.2f} ms" if name in times else "–" for name in (OURS, *peers)),
            _against_dense(record, times),
            _times(min((times[p] for p in SPARSE_PEERS if p in times), default=None), times[OURS]),
            _planned(record, times[OURS]),
            f"{record['results'][0]['max_relative_error']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = ", ".join(sorted({record["machine"] for record in records}))
    found = {name: version for record in records for name, version in record["versions"].items()}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    notes = (
        f"Median of interleaved calls, fp32, batch 1, {machines}; {versions}. Weights are seeded random "
        "numbers; sparse ones are pruned by magnitude without retraining, stem, depthwise and classifier "
        "dense. All engines get the same weights and input; ratios are within one run; ✓ goal reached, ✗ missed. "
        f"The best dense peer of vgg16 is at least as fast as OpenVINO's time / {FULL_MNN_VGG16}, what a full MNN "
        "build takes; the MNN of the package index lacks AVX-512. Planned: the sum of all kernels' times, each "
        "measured alone; in brackets the operators between the layers (layout changes, pools, attention, layer norms)."
    )
    return "\n".join([*lines, "", notes, ""])


def summary(records: Sequence[Any]) -> str:
    """One row for each model on one thread: our milliseconds, and how many times faster than the best dense peer."""
    found = {(_model(r), r["sparsify"] or "none"): r for r in records if r["threads"] == 1}
    columns = list(dict.fromkeys(s for _, s in found))
    lines = [f"| model | {' | '.join('dense' if s == 'none' else s for s in columns)} |"]
    lines.append("|" + "---|" * (1 + len(columns)))
    for model in dict.fromkeys(m for m, _ in found):
        lines.append(f"| {model} | {' | '.join(_short(found.get((model, s))) for s in columns)} |")
    machines = ", ".join(sorted({record["machine"] for record in records}))
    notes = f"One thread, fp32, batch 1, {machines}; against the fastest dense engine of the same run."
    return "\n".join([*lines, "", notes, ""])


def _short(record: Any | None) -> str:
    if record is None:
        return "–"
    times = _medians(record)
    return f"{times[OURS]:.2f} ms, {_times(_best_dense(record, times), times[OURS])}"


def _model(record: Any) -> str:
    return str(record["model"]).removeprefix("zoo:")


def _medians(record: Any) -> dict[str, float]:
    return {r["engine"]: r["latency_ms"]["median"] for r in record["results"]}


def _best_dense(record: Any, times: Mapping[str, float]) -> float | None:
    dense = [ms for name, ms in times.items() if name != OURS and name not in SPARSE_PEERS]
    if _model(record) == "vgg16" and "openvino" in times:
        dense.append(times["openvino"] / FULL_MNN_VGG16)
    return min(dense, default=None)


def _against_dense(record: Any, times: Mapping[str, float]) -> str:
    """Times faster than the best dense peer, and whether that reaches the goal where there is one."""
    best = _best_dense(record, times)
    wanted = target(_model(record), record["sparsify"]) if record["threads"] == 1 else None
    if best is None or wanted is None:
        return _times(best, times[OURS])
    return f"{_times(best, times[OURS])} {'✓' if best / times[OURS] >= wanted else '✗'} (≥ {wanted:g}×)"


def _planned(record: Any, ours: float) -> str:
    """The plan's total over the engine's time, in brackets the operators between layers; layers alone without them."""
    layers = sum(ms for _, ms in record["plan"]["layers"].values())
    rest = sum(calls * ms for calls, ms in record["plan"]["rest"].values())
    if not rest:
        return f"layers {layers / ours:.0%}"
    return f"{(layers + rest) / ours:.0%} ({rest / ours:.0%})"


def target(model: str, sparsify: str | None) -> float | None:
    """How many times faster than the best dense peer the project wants to be; None where no goal is set."""
    if (model, sparsify) == ("vgg16", PATTERN):
        return 2.0
    if model not in TARGETS or sparsify not in TARGET_SPARSIFY:
        return None
    return TARGETS[model][TARGET_SPARSIFY.index(sparsify)]


def _times(theirs: float | None, ours: float) -> str:
    return "–" if theirs is None else f"**{theirs / ours:.2f}×**"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--sparsify", default=",".join(SPARSIFY), help="STRUCTURE@SPARSITY or none")
    parser.add_argument("--threads", default="1", help="thread counts, separated by commas")
    parser.add_argument(
        "--against",
        default="",
        help="peers, separated by commas; by default all that are installed, torch in dense runs only",
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each engine in a run")
    parser.add_argument("--out", default="benchmarks/results", help="folder for the table and the records")
    parser.add_argument("--resume", action="store_true", help="keep records that are already in --out")
    parser.add_argument(
        "--wrapper", default="", help="command that each run is started with, such as nice -n -5"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
