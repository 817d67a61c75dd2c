"""The report of the benchmark on sparse feature maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparseflow.core.map_speed import BOTH, DIRECT, MAP, WEIGHTS, WINOGRAD, MapRun
from sparseflow.report import words
from sparseflow.report.document import REPORTS, Cell, Column, Document, Section, Table, Text
from sparseflow.studies.goals import map_goal
from sparseflow.studies.kernel_results import FeatureMapResults
from sparseflow.studies.results import read


@REPORTS.register("feature-maps")
def feature_maps(data: dict[str, Any], where: str) -> Document:
    """The document of ``benchmarks/feature_maps.py``.

    Raises
    ------
    SparseflowError
        If ``data`` is not what it writes.
    """
    results = read(FeatureMapResults, data, where)
    runs = tuple(results.cases.values())
    judged = [run for run in runs if map_goal(run) is not None]
    alone = [r for r in runs if r.judged == MAP and r.layer.op == "conv2d"]
    maps = _maps([r for r in alone if r.tiles == 1.0])
    both = _both([r for r in runs if r.judged == BOTH])
    linear = _linear([r for r in runs if r.layer.op == "linear"])
    ran = f"{results.machine}. Command: {results.command}." if results.command else f"{results.machine}."
    return Document(
        "sparseflow feature maps",
        f"{sum(_reached(run) for run in judged)} of {len(judged)} goals of kernels on sparse maps reached",
        f"One thread, fp32, random zeros in maps and weights; {results.machine}.",
        (maps, both, linear),
        (
            Section("Maps", (maps,)),
            Section("Both", (both,)),
            Section("Tiles", (_tiles([r for r in alone if r.tiles < 1.0]),)),
            Section("Linear", (linear,)),
            Section("Kernels", (_kernels(runs),)),
            Section("Machine", (Text(ran),)),
        ),
    )


def _reached(run: MapRun) -> bool:
    speedup, goal = run.speedup(DIRECT), map_goal(run)
    return goal is not None and speedup is not None and speedup >= goal


def _over_direct(run: MapRun) -> Cell:
    text, goal = words.times(run.speedup(DIRECT)), map_goal(run)
    if goal is None:
        return Cell(text)
    reached = _reached(run)
    return Cell(f"{text} {'✓' if reached else '✗'} (≥ {words.times(goal)})", strong=reached)


def _time(run: MapRun, use: str) -> Cell:
    return Cell(words.duration(run.times_s[use]) if use in run.times_s else "–")


def _efficiency(run: MapRun) -> Cell:
    return Cell("–" if run.efficiency is None else words.percent(run.efficiency, 0))


def _maps(runs: Iterable[MapRun]) -> Table:
    titles = ("Map density", "Time", "× direct", "× Winograd", "% of peak", "Direct", "Winograd")
    rows = tuple(
        (
            Cell(run.layer.name),
            Cell(words.percent(run.map_density, 0)),
            _time(run, MAP),
            _over_direct(run),
            Cell(words.times(run.speedup(WINOGRAD))),
            _efficiency(run),
            _time(run, DIRECT),
            _time(run, WINOGRAD),
        )
        for run in runs
    )
    caption = (
        "Dense weights, sparse map, its index made for the next layer; % of peak counts what is multiplied"
    )
    return Table(caption, (Column("Layer", number=False), *(Column(t) for t in titles)), rows)


def _both(runs: Iterable[MapRun]) -> Table:
    titles = (
        "Map density",
        "Both",
        "× direct",
        "× Winograd",
        "× better alone",
        "% of peak",
        "Weights",
        "Map",
    )
    rows = tuple(
        (
            Cell(run.layer.name),
            Cell(run.structure),
            Cell(words.percent(run.map_density, 0)),
            _time(run, BOTH),
            _over_direct(run),
            Cell(words.times(run.speedup(WINOGRAD))),
            Cell(words.times(run.over_alone)),
            _efficiency(run),
            _time(run, WEIGHTS),
            _time(run, MAP),
        )
        for run in runs
    )
    columns = (Column("Layer", number=False), Column("Weights", number=False), *(Column(t) for t in titles))
    return Table("Sparse weights and sparse map together, beside the zeros of one side alone", columns, rows)


def _tiles(runs: Iterable[MapRun]) -> Table:
    titles = ("Tiles not zero", "Map density", "Time", "× direct", "× Winograd", "% of peak")
    rows = tuple(
        (
            Cell(run.layer.name),
            Cell(words.percent(run.tiles, 0)),
            Cell(words.percent(run.map_density, 0)),
            _time(run, MAP),
            _over_direct(run),
            Cell(words.times(run.speedup(WINOGRAD))),
            _efficiency(run),
        )
        for run in runs
    )
    caption = "Maps whose non-zeros lie in some tiles only, as in differences of frames"
    return Table(caption, (Column("Layer", number=False), *(Column(t) for t in titles)), rows)


def _linear(runs: Iterable[MapRun]) -> Table:
    titles = ("Input density", "Time", "× dense", "Dense")
    rows = tuple(
        (
            Cell(run.layer.name),
            Cell(words.percent(run.map_density, 0)),
            _time(run, MAP),
            _over_direct(run),
            _time(run, DIRECT),
        )
        for run in runs
    )
    caption = "A linear layer that does not read the weights of zero inputs"
    return Table(caption, (Column("Layer", number=False), *(Column(t) for t in titles)), rows)


def _kernels(runs: Iterable[MapRun]) -> Table:
    columns = tuple(
        Column(t, number=False) for t in ("Layer", "Weights", "Map density", "Kernel", "Dense kernel")
    )
    rows = tuple(
        (
            Cell(run.layer.name),
            Cell(run.structure),
            Cell(words.percent(run.map_density, 0)),
            Cell(run.kernels.get(run.judged, "–")),
            Cell(run.kernels.get(DIRECT, "–")),
        )
        for run in runs
    )
    return Table("The fastest kernel of each case", columns, rows)
