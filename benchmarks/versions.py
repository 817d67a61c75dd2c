"""One version of sparseflow beside another: the same networks compiled by both, timed in turn within one run.

    git worktree add ../before v0.1
    python benchmarks/versions.py ../before --models resnet50,vgg16 --sparsify block:4x1@0.9,unstructured@0.9
    python benchmarks/versions.py ../before --models resnet50 --sparsify none --maps   # feature maps with their index

Each version works in a process of its own, with kernels measured into a cache of its own (``build/versions``). Then
both are asked in turn for the median of some calls on the same core. The table says the new version's time over the old
one's, the median of all turns; the compile times; and how far the outputs differ. The exit code is the number of rows
above ``--limit``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAME = "versions"
HERE = Path(__file__).resolve().parents[1]
HEADER = ("model", "weights", "old", "new", "new / old", "old compile", "new compile", "difference")


class Version:
    """The process of one version, which has compiled a network and waits to be asked for its time."""

    def __init__(self, folder: Path, cache: Path, case: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "SPARSEFLOW_CACHE": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *case],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        self.compile_s: float = self.read()["compile_s"]

    def read(self) -> Any:
        """Its next answer."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"the worker ended with exit code {self.process.wait()}")
        return json.loads(line)

    def ask(self, calls: int) -> float:
        """The median of ``calls`` calls in seconds."""
        self.process.stdin.write(f"{calls}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return float(self.read()["median_s"])

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def worker(model: str, sparsify: str, maps: str, output: str) -> None:
    """Compiles, writes the first output, and answers each line, a number of calls, with their median."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is progress

    import sparseflow
    from sparseflow.cli.models import ModelRequest, load_model

    text = model if Path(model).is_file() else f"zoo:{model}"
    loaded = load_model(ModelRequest(text, None if sparsify == "none" else sparsify))
    imported = loaded.imported()
    inputs = loaded.inputs(imported.inputs)
    begin = time.perf_counter()
    engine = sparseflow.compile(imported, **({"calibration": [inputs]} if maps else {}))
    print(json.dumps({"compile_s": time.perf_counter() - begin}), file=answers, flush=True)
    found = engine(*inputs)
    np.save(output, np.asarray(found[0] if isinstance(found, tuple | list) else found))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            engine(*inputs)
            times.append(time.perf_counter() - begin)
        print(json.dumps({"median_s": statistics.median(times)}), file=answers, flush=True)


def compare(old: Path, case: tuple[str, str], maps: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{name}.npy" for name in ("old", "new")]
        versions: list[Version] = []
        for path, output in zip((old, HERE), outputs, strict=True):
            cache = Path(args.cache).resolve() / output.stem
            versions.append(Version(path, cache, [*case, "maps" if maps else "", str(output)]))
        guess = [v.ask(3) for v in versions]
        calls = max(3, min(200, round(args.turn_s / max(guess))))
        turns = []
        for i in range(args.turns):
            pair = versions if i % 2 else versions[::-1]
            times = [v.ask(calls) for v in pair]
            turns.append(times if i % 2 else times[::-1])
        for version in versions:
            version.close()
        before, after = (np.load(output) for output in outputs)
    return {
        "model": case[0],
        "sparsify": case[1],
        "maps": maps,
        "old_s": statistics.median(t[0] for t in turns),
        "new_s": statistics.median(t[1] for t in turns),
        "ratio": statistics.median(t[1] / t[0] for t in turns),
        "old_compile_s": versions[0].compile_s,
        "new_compile_s": versions[1].compile_s,
        "difference": float(np.abs(after - before).max() / np.abs(before).max()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for r in rows:
        weights = r["sparsify"] + (", maps with an index" if r["maps"] else "")
        times = [f"{1e3 * r[k]:.2f} ms" for k in ("old_s", "new_s")] + [f"{r['ratio']:.3f}×"]
        times += [f"{r[k]:.0f} s" for k in ("old_compile_s", "new_compile_s")]
        cells = [r["model"], f"`{weights}`", *times, f"{r['difference']:.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs all rows, each written as soon as it is there; ``--resume`` keeps those of a stopped run."""
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{NAME}.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("old", type=Path, help="a checkout of the other version")
    parser.add_argument(
        "--models", default="resnet50,vgg16,mobilenet_v1,mobilenet_v2,bert_base", help="of the zoo, or files"
    )
    parser.add_argument("--sparsify", default="unstructured@0.9,block:4x1@0.9,unstructured@0.95")
    parser.add_argument(
        "--maps", action="store_true", help="let maps carry an index, calibrated on the input"
    )
    parser.add_argument("--turns", type=int, default=21, help="how often each version is asked")
    parser.add_argument("--turn-s", type=float, default=0.5, help="seconds of a turn")
    parser.add_argument("--limit", type=float, default=1.02, help="a row above it is a failure")
    parser.add_argument("--cache", default="build/versions", help="folder of both caches and the rows")
    parser.add_argument("--resume", action="store_true", help="keep the rows and caches that are there")
    args = parser.parse_args()
    if not (args.old / "src" / "sparseflow").is_dir():
        parser.error(f"{args.old}: found no src/sparseflow; give the folder of a checkout")
    store = Path(args.cache) / "rows.json"
    if not args.resume:
        shutil.rmtree(args.cache, ignore_errors=True)
    store.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.is_file() else []
    done = {(r["model"], r["sparsify"], r["maps"]) for r in rows}
    for model, sparsify in itertools.product(args.models.split(","), args.sparsify.split(",")):
        if (model, sparsify, args.maps) in done:
            continue
        print(f"{model} {sparsify}", file=sys.stderr, flush=True)
        rows.append(compare(args.old.resolve(), (model, sparsify), args.maps, args))
        fresh = store.with_suffix(".new")
        fresh.write_text(json.dumps(rows, indent=1))
        fresh.replace(store)
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    return sum(r["ratio"] > args.limit for r in rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
