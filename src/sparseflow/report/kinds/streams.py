"""The report of the stream benchmark: time by changed fraction, and how far a change reaches in the network."""

from __future__ import annotations

from collections.abc import Sequence

from sparseflow.report import words
from sparseflow.report.document import Cell, Document, Section, Table, report
from sparseflow.report.kinds.kernels import ran
from sparseflow.studies.stream_results import StreamResults, StreamRun

SHOWN = 0.1  # the changed fraction of which every layer is shown


@report("streams", StreamResults)
def streams(results: StreamResults) -> Document:
    """The document of ``benchmarks/streams.py``."""
    runs = sorted(results.cases.values(), key=lambda r: (r.place, r.threshold, r.fraction))
    shown = [r for r in runs if r.fraction == SHOWN and r.threshold == 0.0]
    best = max((r.speedup for r in shown), default=0.0)
    return Document(
        "sparseflow streams",
        f"{words.times(best)} over full recomputation where {words.percent(SHOWN, 0)} of a frame change",
        f"{results.model}, one thread, fp32, batch 1, random weights and frames; {results.machine}.",
        (_speeds(runs),),
        (
            Section("Speed", (_speeds(runs),)),
            Section("Reach", (_reach(shown),)),
            ran(results.machine, results.command),
        ),
    )


def _speeds(runs: Sequence[StreamRun]) -> Table:
    rows = (
        (
            run.place,
            f"{run.threshold:g}",
            words.percent(run.fraction, 0),
            words.duration(run.stream_s),
            words.duration(run.dense_s),
            Cell(words.times(run.speedup), strong=run.speedup >= 1.0),
            words.times(run.bound),
            f"{run.error:.0e}",
        )
        for run in runs
    )
    return Table.of(
        "A frame of which a part changed, against the whole network by our dense engine, calls in turn. The bound is "
        "the multiplications of all layers over those of the pixels that the change reaches",
        ("Changed part", "Threshold", "Changed", "Stream", "Dense engine", "Speed-up", "MAC bound", "Error"),
        rows,
    )


def _reach(runs: Sequence[StreamRun]) -> Table:
    titles = [f"{run.place}: {title}" for run in runs for title in ("pixels", "tiles", "time")]
    rows = []
    for steps in zip(*(run.steps for run in runs), strict=True):
        cells = [steps[0].name]
        for step in steps:
            tile = f"{step.tiles} of {step.tiles_total} ({step.tile[0]}×{step.tile[1]})"
            tile = tile if step.tile != (1, 1) else "–"
            cells += [words.percent(step.changed, 0), tile, words.duration(step.time_s)]
        rows.append(cells)
    caption = (
        f"Threshold 0, {words.percent(SHOWN, 0)} of the frame changed: pixels that differ, tiles run anew"
    )
    return Table.of(caption, ("Operator", *titles), rows)
