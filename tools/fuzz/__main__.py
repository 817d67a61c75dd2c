"""``python -m tools.fuzz``: a campaign, or one seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparseflow.core.codec import dumps, encode

from .campaign import LIMIT_S, Worker, known, record, shrunk
from .check import FAILURES, REFUSED, reason
from .generate import draw

console = Console()


def main(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Networks to check.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first; the others follow.")] = 0,
    out: Annotated[
        Path, typer.Option(help="JSON lines, one for each network; the same command goes on.")
    ] = Path("runs/fuzz/outcomes.jsonl"),
    limit: Annotated[float, typer.Option(help="Seconds after which a network counts as a hang.")] = LIMIT_S,
    shrink: Annotated[
        bool, typer.Option(help="Look for a smaller network that fails in the same way.")
    ] = True,
    show: Annotated[bool, typer.Option(help="Only print the networks of the seeds.")] = False,
) -> None:
    """Compiles random networks and holds the engines against torch in float64. Exit code 1 if one fails.

    One seed again: --seed 17 --count 1 --out /dev/null
    """
    seeds = range(seed, seed + count)
    if show:
        for number in seeds:
            console.print(draw(number).code() + "\n", markup=False, highlight=False)
        return
    before = known(out) if out.is_file() else {}
    found = {number: before[number] for number in seeds if number in before}
    worker = Worker(limit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("networks", total=count, completed=len(found))
        for number in seeds:
            if number in found:
                continue
            case = draw(number)
            outcome = worker.check(case)
            record(out, case, outcome)
            found[number] = {"seed": number, **encode(outcome)}
            if outcome.kind in FAILURES:
                progress.print(f"seed {number}: {outcome.kind}: {outcome.detail}", markup=False)
                if shrink:
                    case = shrunk(case, outcome.kind, worker.check)
                    progress.print(case.code() + "\n" + dumps(case), markup=False, highlight=False)
            progress.advance(task)
    worker.close()
    kinds = Counter(data["kind"] for data in found.values())
    for text, times in Counter(
        reason(d["detail"]) for d in found.values() if d["kind"] == REFUSED
    ).most_common():
        console.print(f"refused {times} times: {text}", markup=False)
    console.print(", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) + f" of {count}")
    failed = sorted(number for number, data in found.items() if data["kind"] in FAILURES)
    if failed:
        again = f"python -m tools.fuzz --seed {failed[0]} --count 1 --out /dev/null"
        console.print(f"failed: seeds {failed}; again: {again}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
