"""The report of `sparseflow sweep`: every cell in a table, accuracy against measured latency in a plot."""

from __future__ import annotations

from sparseflow.report import words
from sparseflow.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Point,
    Scatter,
    Section,
    Table,
    Text,
    report,
)
from sparseflow.studies.results import DENSE
from sparseflow.studies.sweep_results import CellResult, SweepResult

_SERIES = ("s1", "s2", "s3", "s4", "index")


@report("sweep", SweepResult)
def build(result: SweepResult) -> Document:
    """The document of a sweep's results."""
    judged = [cell for cell in result.cells if result.reached(cell) is not None]
    kept = sum(bool(result.reached(cell)) for cell in judged)
    headline = (
        f"{len(result.cells)} of {len(result.cells) + len(result.pending)} cells trained; "
        f"{kept} of {len(judged)} keep the accuracy that was aimed at"
    )
    lede = (
        f"From one dense network of {words.percent(result.dense.accuracy, 2)} test accuracy, "
        f"seed {result.environment.seed}; {result.environment.machine}."
    )
    summary: tuple[Block, ...] = (_table(result), *_pending(result))
    sections = [Section("Results", summary)]
    if len(result.measured) > 1:
        sections.append(Section("Pareto", (_plot(result),)))
    sections.append(Section("Machine", (_environment(result),)))
    return Document(f"sparseflow sweep: {result.sweep}", headline, lede, summary, tuple(sections))


def _table(result: SweepResult) -> Table:
    front = {cell.name for cell in result.pareto}
    return Table.of(
        "Test accuracy after the last epoch; latency is the compiled engine's median, batch 1, all engines in "
        "turns; bold: none is both faster and more accurate.",
        (
            "Method",
            Column("Structure and sparsity", number=False),
            "Accuracy",
            "Points vs dense",
            "Aim",
            "Fewer conv weights",
            "MACs of dense",
            "Latency, ms",
            "vs dense",
            "Epochs",
            "Minutes",
        ),
        (_row(result, cell, cell.name in front) for cell in (result.dense, *result.cells)),
    )


def _row(result: SweepResult, cell: CellResult, strong: bool) -> tuple[str | Cell, ...]:
    dense = cell.name == DENSE
    latency = cell.engine.latency if cell.engine is not None else None
    fraction = result.mac_fraction(cell)
    return (
        cell.method,
        "" if dense else cell.structure,
        Cell(words.percent(cell.accuracy, 2), strong=strong),
        "" if dense else words.points(result.points_lost(cell)),
        _aim(result, cell),
        words.times(cell.conv_compression),
        "–" if fraction is None else words.percent(fraction),
        Cell("–" if latency is None else words.digits(latency.median_s * 1e3), strong=strong),
        words.times(result.speedup(cell)),
        str(cell.epochs),
        words.digits(cell.seconds / 60),
    )


def _aim(result: SweepResult, cell: CellResult) -> str:
    reached = result.reached(cell)
    return "" if reached is None else f"{'✓' if reached else '✗'} (≥ {words.points(cell.aim or 0.0)})"


def _pending(result: SweepResult) -> tuple[Text, ...]:
    if not result.pending:
        return ()
    return (Text(f"Not trained yet: {', '.join(result.pending)}. The same command goes on with them."),)


def _plot(result: SweepResult) -> Scatter:
    methods = list(dict.fromkeys(cell.method for cell in result.cells))
    points = []
    for cell, engine in result.measured:
        latency = engine.latency
        series = "neutral" if cell.name == DENSE else _SERIES[methods.index(cell.method) % len(_SERIES)]
        points.append(
            Point(
                DENSE if cell.name == DENSE else f"{cell.method}, {cell.structure}",
                latency.median_s * 1e3,
                100 * cell.accuracy,
                1 / cell.conv_compression,
                series,
                latency.p10_s * 1e3,
                latency.p90_s * 1e3,
            )
        )
    front = ", ".join(DENSE if c.name == DENSE else f"{c.method} {c.structure}" for c in result.pareto)
    return Scatter(
        "accuracy-measured-latency",
        "Accuracy and measured latency",
        "latency, ms (less is better)",
        "test accuracy, %",
        tuple(points),
        f"The area of a circle is the fraction of convolution weights kept. On the Pareto front: {front}. "
        "The accuracy axis does not start at zero.",
    )


def _environment(result: SweepResult) -> Table:
    environment = result.environment
    facts = {
        "Machine": environment.machine,
        "Threads of an engine": str(environment.threads),
        "Seed": str(environment.seed),
        "Written": environment.created,
        **environment.versions,
    }
    return Table.facts("Machine, versions", facts)
