"""The report of `sparseflow bench`: our engine and the peers on the same weights and input."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparseflow.core.plan import Plan
from sparseflow.report import words
from sparseflow.report.document import Bar, Bars, Block, Cell, Document, Fold, Section, Table, report
from sparseflow.report.kinds.layers import candidates, cut_table, layer_table, map_table
from sparseflow.studies.results import OURS

_MS = 1e-3


@dataclass(frozen=True)
class LatencyMs:
    """Latency in milliseconds."""

    median: float
    p10: float
    p90: float
    min: float


@dataclass(frozen=True)
class EngineResult:
    """One engine's line of a benchmark."""

    engine: str
    latency_ms: LatencyMs
    max_relative_error: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A peer that did not take part."""

    engine: str
    reason: str


@dataclass(frozen=True)
class BenchResult:
    """What `sparseflow bench --json` writes, as far as the report shows it."""

    results: tuple[EngineResult, ...]
    model: str = "model"
    sparsify: str | None = None
    sparsify_method: str | None = None
    weights: str = ""
    reference: str = ""
    skipped: tuple[Skipped, ...] = ()
    threads: int = 1
    speedup_vs_best_peer: float | None = None
    best_peer: str | None = None
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = None


@report("bench", BenchResult, partial=True)
def build(result: BenchResult) -> Document:
    """The document of a benchmark's results."""
    ours = next((r for r in result.results if r.engine == OURS), None)
    sections: list[Section] = []
    if result.plan:
        plan = result.plan
        blocks: list[Block] = [layer_table(plan, "What the compiler found and chose"), candidates(plan)]
        if plan.cuts:
            blocks.append(Fold("What propagation cut", (cut_table(plan.cuts),)))
        if plan.maps is not None:
            blocks.append(Fold("Feature maps and their index", (map_table(plan),)))
        sections.append(Section("Layer by layer", tuple(blocks)))
    facts = {
        "Model": result.model,
        "Weights": result.weights,
        "Sparsified": result.sparsify or "no",
        "How": result.sparsify_method or "",
        "Outputs compared with": result.reference,
        "Machine": result.machine,
        "Threads": str(result.threads),
        **result.versions,
        **{f"{s.engine}, left out": s.reason for s in result.skipped},
    }
    sections.append(Section("How it ran", (Table.facts("Machine, versions", facts),)))
    headline = f"{result.model}: measured in {len(result.results)} engines"
    if ours is not None and result.speedup_vs_best_peer is not None:
        peer = f" ({result.best_peer})" if result.best_peer else ""
        headline = f"{result.model} runs {words.faster(result.speedup_vs_best_peer)} than the best peer{peer}"
    method = f" ({result.sparsify_method})" if result.sparsify_method else ""
    sparsified = f"sparsified to {result.sparsify}{method}" if result.sparsify else "weights not sparsified"
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    lede = f"{sparsified}; {threads}, {result.machine or 'machine not named'}."
    return Document(
        f"sparseflow bench: {result.model}",
        headline,
        lede,
        (_table(result), _figure(result)),
        tuple(sections),
    )


def _table(result: BenchResult) -> Table:
    ours = next((r.latency_ms.median for r in result.results if r.engine == OURS), None)
    rows = (
        (
            Cell(r.engine, strong=r.engine == OURS),
            words.digits(r.latency_ms.median),
            words.spread(r.latency_ms.p10, r.latency_ms.p90),
            words.digits(r.latency_ms.min),
            "–" if not ours else f"{r.latency_ms.median / ours:.2f}×",
            "–" if r.max_relative_error is None else f"{r.max_relative_error:.1e}",
        )
        for r in result.results
    )
    titles = ("Engine", "Median, ms", "p10–p90, ms", "Fastest, ms", "Of ours", "Relative error")
    return Table.of("Same weights, same input, interleaved", titles, rows)


def _figure(result: BenchResult) -> Bars:
    size, unit = words.time_unit(r.latency_ms.median * _MS for r in result.results)
    factor = _MS / size
    return Bars(
        "latency",
        "Latency",
        unit,
        tuple(
            Bar(
                r.engine,
                (("s1" if r.engine == OURS else "peer", r.latency_ms.median * factor),),
                f"{words.digits(r.latency_ms.median * factor)} {unit}",
                r.latency_ms.p10 * factor,
                r.latency_ms.p90 * factor,
            )
            for r in result.results
        ),
        caption="Median; the whisker spans the 10th to the 90th percentile. Shorter is better.",
    )
