"""The reports of the kernel benchmarks: efficiency and rooflines, break-even curves, published tables beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sparseflow.core.kernel_speed import KernelRun, Limits, SpeedPoint
from sparseflow.report import words
from sparseflow.report.document import (
    Cell,
    Column,
    Document,
    Line,
    Lines,
    Panels,
    Section,
    Table,
    Text,
    report,
)
from sparseflow.studies.goals import efficiency_goal
from sparseflow.studies.kernel_results import (
    BreakEvenResults,
    KernelResults,
    PublishedPoint,
    PublishedResults,
    break_even_sparsity,
    network_speedup,
)

_SERIES = ("s1", "s2", "s3", "s4", "index", "peer")
_EXPECTED = (0.5, 0.7, 0.8, 0.9, 0.95)
T = TypeVar("T")


@report("kernels", KernelResults)
def kernels(results: KernelResults) -> Document:
    """The document of ``benchmarks/kernels.py``."""
    runs = tuple(results.cases.values())
    goals = [(run, goal) for run in runs if (goal := efficiency_goal(run)) is not None]
    reached = sum(run.efficiency >= goal for run, goal in goals)
    return Document(
        "sparseflow kernels",
        f"{reached} of {len(goals)} kernel efficiency goals reached",
        f"One thread, fp32, random weights; {results.machine}.",
        (_limits(results.limits), _efficiency(runs)),
        (
            Section("Limits", (_limits(results.limits),)),
            Section("Efficiency", (_efficiency(runs),)),
            Section("Rooflines", (_rooflines(runs, results.limits),)),
            Section("All", (_all_runs(runs, results.limits),)),
            ran(results.machine, results.command),
        ),
    )


@report("break-even", BreakEvenResults)
def break_even(results: BreakEvenResults) -> Document:
    """The document of ``benchmarks/break_even.py``."""
    points = tuple(results.cases.values())
    return Document(
        "sparseflow break-even",
        "From which sparsity on zeros pay",
        f"Speed-up over our own best dense kernel, one thread, fp32, random weights; {results.machine}.",
        (_crossings(points),),
        (
            Section("Curves", (_curves(points),)),
            Section("Break-even", (_crossings(points),)),
            Section("Expect", (_expected(points),)),
            ran(results.machine, results.command),
        ),
    )


@report("published", PublishedResults)
def published(results: PublishedResults) -> Document:
    """The document of ``benchmarks/published.py``."""
    points = tuple(results.cases.values())
    alone = [p for p in points if p.network == ""]
    network = [p for p in points if p.network]
    return Document(
        "sparseflow published",
        "Published speed-ups of sparse convolutions in TVM, beside ours",
        f"One thread, fp32, random weights, each over its own dense code; {results.machine}.",
        (),
        (
            Section("Layers", (_published_layers(alone),)),
            Section("Network", (_published_network(network),)),
            ran(results.machine, results.command),
        ),
    )


def ran(machine: str, command: str) -> Section:
    """Where and how a benchmark was run."""
    text = f"{machine}. Command: {command}." if command else f"{machine}."
    return Section("Machine", (Text(text),))


def _limits(limits: Limits) -> Table:
    l1, l2, l3 = (words.nbytes(n) for n in limits.cache_bytes)
    rows = (
        ("fp32 multiply-add", f"{words.digits(limits.fma_gflops)} GFLOP/s", "registers only"),
        ("load from L1", f"{words.digits(limits.l1_gbs)} GB/s", l1),
        ("load from L2", f"{words.digits(limits.l2_gbs)} GB/s", l2),
        ("load from L3", f"{words.digits(limits.l3_gbs)} GB/s", l3),
        ("load from DRAM", f"{words.digits(limits.dram_gbs)} GB/s", ""),
    )
    caption = "What the machine can do at most, measured by generated kernels"
    return Table.of(caption, ("One core", "Measured", "Size"), rows)


def _efficiency(runs: Sequence[KernelRun]) -> Table:
    structures = [
        s
        for s in _distinct(r.structure for r in runs)
        if any(efficiency_goal(r) for r in runs if r.structure == s)
    ]
    by = {(r.layer.name, r.structure): r for r in runs}

    def cell(run: KernelRun | None) -> Cell:
        if run is None:
            return Cell("–")
        share = words.percent(run.efficiency, 0)
        goal = efficiency_goal(run)
        if goal is None:
            return Cell(share)
        reached = run.efficiency >= goal
        return Cell(f"{share} {'✓' if reached else '✗'} (≥ {words.percent(goal, 0)})", strong=reached)

    rows = (
        (Cell(name), *(cell(by.get((name, s))) for s in (*structures, "dense")))
        for name in _distinct(r.layer.name for r in runs)
    )
    return Table.of(
        "Useful FLOPs (non-zero weights) over the FMA peak of the same run; ✓ goal reached, ✗ missed. "
        "Above 100 % where Winograd saves multiplications",
        ("Layer", *structures, "dense"),
        rows,
    )


def _all_runs(runs: Sequence[KernelRun], limits: Limits) -> Table:
    titles = (
        "Layer",
        Column("Structure", number=False),
        Column("Kernel", number=False),
        "Time",
        "Useful GFLOP/s",
        "% of peak",
        "Dense-equivalent GFLOP/s",
        "× our dense",
        "FLOP/B at the core",
        "FLOP/B of operands",
        "Roofline GFLOP/s",
    )
    rows = []
    for run in runs:
        bound, by = run.bound(limits)
        core = run.core_intensity
        rows.append(
            (
                run.layer.name,
                run.structure,
                run.kernel,
                words.duration(run.time_s),
                words.digits(run.useful_gflops),
                words.percent(run.efficiency, 0),
                words.digits(run.dense_equivalent_gflops),
                words.times(run.speedup),
                "–" if core is None else words.digits(core, 2),
                words.digits(run.memory_intensity, 2),
                f"{words.digits(bound)} ({by})",
            )
        )
    return Table.of("Every layer and structure: the kernel that the selector takes", titles, rows)


def _rooflines(runs: Sequence[KernelRun], limits: Limits) -> Panels:
    shown = [r for r in runs if r.core_intensity is not None]
    structures = _distinct(r.structure for r in shown)
    intensities = [r.core_intensity for r in shown if r.core_intensity is not None]
    low = 0.7 * min([*intensities, limits.fma_gflops / limits.l1_gbs])
    high = 1.4 * max([*intensities, limits.fma_gflops / limits.dram_gbs])
    peak = (limits.fma_gflops,) * 2
    roofs = [Line("FMA peak", "neutral", (limits.fma_gflops / limits.l1_gbs, high), peak, dashed=True)]
    for name, series, rate in (
        ("L1", "s1", limits.l1_gbs),
        ("L2", "s2", limits.l2_gbs),
        ("DRAM", "s3", limits.dram_gbs),
    ):
        ridge = limits.fma_gflops / rate
        roofs.append(
            Line(f"{name} loads", series, (low, ridge), (low * rate, limits.fma_gflops), dashed=True)
        )
    plots = []
    for i, name in enumerate(_distinct(r.layer.name for r in shown)):
        marks = [
            Line(s, _SERIES[structures.index(s) % len(_SERIES)], (r.core_intensity,), (r.useful_gflops,))
            for s in structures
            for r in shown
            if r.layer.name == name and r.structure == s and r.core_intensity is not None
        ]
        x, y = "useful FLOP per byte at the core", "useful GFLOP/s"
        plots.append(Lines(f"roofline-{i}", name, x, y, (*roofs, *marks), log=True))
    return Panels(
        "rooflines",
        "Rooflines, one core",
        tuple(plots),
        "A mark is the kernel of one structure; kernels without register tiles (Winograd, few rows) have none.",
    )


def _curves(points: Sequence[SpeedPoint]) -> Panels:
    structures = _distinct(p.structure for p in points)
    plots = []
    for i, group in enumerate(_distinct(p.layer.group for p in points)):
        taken = [p for p in points if p.layer.group == group]
        lines = [
            Line("as fast as dense", "neutral", _ends(p.density for p in taken), (1.0, 1.0), dashed=True)
        ]
        for j, structure in enumerate(structures):
            curve = sorted((p for p in taken if p.structure == structure), key=lambda p: p.density)
            if curve:
                xs, ys = tuple(p.density for p in curve), tuple(p.speedup for p in curve)
                lines.append(Line(structure, _SERIES[j % len(_SERIES)], xs, ys))
        title = f"{group}: {taken[0].layer.name}"
        plots.append(Lines(f"break-even-{i}", title, "density", "× our best dense", tuple(lines), log=True))
    return Panels(
        "break-even",
        "What should I expect? Speed-up over our own best dense kernel against density",
        tuple(plots),
        "Random weights, one thread, fp32; both axes logarithmic. Each point timed in turn with the dense kernel.",
    )


def _ends(values: Iterable[float]) -> tuple[float, float]:
    taken = list(values)
    return (min(taken), max(taken))


def _crossings(points: Sequence[SpeedPoint]) -> Table:
    def cell(taken: list[SpeedPoint]) -> str:
        if not taken:
            return "–"
        found = break_even_sparsity(taken)
        if found is None:
            return "never"
        least = min(p.sparsity for p in taken)
        return words.percent(found, 0) if found > least + 1e-9 else f"≤ {words.percent(least, 0)}"

    return _by_group("Break-even: the sparsity from which on the sparse kernel is the faster", points, cell)


def _expected(points: Sequence[SpeedPoint]) -> Table:
    def cell(taken: list[SpeedPoint]) -> str:
        found = [min(taken, key=lambda p: abs(p.sparsity - s), default=None) for s in _EXPECTED]
        near = [
            p if p is not None and abs(p.sparsity - s) < 0.011 else None
            for p, s in zip(found, _EXPECTED, strict=True)
        ]
        return " / ".join(words.times(None if p is None else p.speedup) for p in near)

    shown = " / ".join(words.percent(s, 0) for s in _EXPECTED)
    return _by_group(f"Speed-up over our best dense kernel at {shown} sparsity", points, cell)


def _by_group(caption: str, points: Sequence[SpeedPoint], cell: Callable[[list[SpeedPoint]], str]) -> Table:
    groups = _distinct(p.layer.group for p in points)
    rows = (
        (
            structure,
            *(cell([p for p in points if p.structure == structure and p.layer.group == g]) for g in groups),
        )
        for structure in _distinct(p.structure for p in points)
    )
    return Table.of(caption, ("Structure", *groups), rows)


def _published_layers(points: Sequence[PublishedPoint]) -> Table:
    sparsities = sorted(_distinct(p.sparsity for p in points), reverse=True)
    rows = []
    for name in _distinct(p.ours.layer.name for p in points):
        cells: list[str | Cell] = [name]
        for sparsity in sparsities:
            found = next((p for p in points if p.ours.layer.name == name and p.sparsity == sparsity), None)
            cells += ["–", "–"] if found is None else [words.times(found.published), _our_cell(found)]
        rows.append(cells)
    titles = [title for s in sparsities for title in (f"{words.percent(s, 0)} published", "ours")]
    return Table.of(f"{_origin(points)}, speed-up over dense", ("Layer", *titles), rows)


def _origin(points: Sequence[PublishedPoint]) -> str:
    return f"{points[0].source}: {points[0].ours.structure}" if points else ": "


def _our_cell(point: PublishedPoint) -> Cell:
    ours, published = point.ours.speedup, point.published
    if published is None:
        return Cell(words.times(ours))
    return Cell(f"{words.times(ours)} {'✓' if ours >= published else '✗'}", strong=ours >= published)


def _published_network(points: Sequence[PublishedPoint]) -> Table:
    rows = []
    for sparsity in sorted(_distinct(p.sparsity for p in points)):
        taken = [p for p in points if p.sparsity == sparsity]
        figure = next((p.published for p in taken if p.published is not None), None)
        ours = Cell(words.times(network_speedup(taken)), strong=True)
        faster = f"{sum(p.ours.speedup >= 1.0 for p in taken)} of {len(taken)}"
        rows.append((words.percent(sparsity, 0), words.times(figure), ours, faster))
    titles = (Column("Sparsity"), "Published", "Ours", "Shapes not slower than dense")
    return Table.of(f"{_origin(points)}, all layers' dense time / sparse time", titles, rows)


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
