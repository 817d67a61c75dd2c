"""What the kernel benchmarks' command lines share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparseflow.engine.target.machine import machine_name
from sparseflow.report import build_document
from sparseflow.report import show as show_document
from sparseflow.studies.records import Records

RESULTS = "benchmarks/results"


def parser(doc: str | None, name: str, choice: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that all of them take, ``choice`` being that between measurement and cost model."""
    found = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py", description=(doc or "").split("\n")[0]
    )
    found.add_argument("--out", default=RESULTS, help="folder of the records")
    found.add_argument("--resume", action="store_true", help="keep records that are already in --out")
    found.add_argument("--minutes", type=float, help="begin no further case after so many; --resume goes on")
    found.add_argument("--rounds", type=int, default=15, help="samples of each kernel; kernels take turns")
    if choice:
        found.add_argument(
            "--no-measure", action="store_true", help="take the cost model's choice of kernels"
        )
    return found


def named(name: str, wanted: str) -> bool:
    """Whether ``name`` contains one of the comma-separated ``wanted``; all do if there are none."""
    return not wanted or any(part in name for part in wanted.split(","))


def command(name: str, arguments: Sequence[str] | None) -> str:
    """The command as it was given."""
    return shlex.join(
        ["python", f"benchmarks/{name}.py", *(sys.argv[1:] if arguments is None else arguments)]
    )


def records(name: str, args: argparse.Namespace, arguments: Sequence[str] | None) -> Records:
    """The records of benchmark ``name`` in the folder that was asked for, headed by machine and command."""
    head = {"kind": name, "machine": machine_name(), "command": command(name, arguments)}
    return Records(Path(args.out) / f"{name}.json", head, args.resume)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(data: dict[str, Any], path: Path) -> None:
    """The document's summary on the terminal."""
    show_document(build_document(data, str(path)), Console())
    say(f"{path}: {len(data['cases'])} records; python benchmarks/render.py puts them into the docs")
