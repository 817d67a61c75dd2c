"""The report of the benchmark on sparse feature maps."""

from __future__ import annotations

from collections.abc import Iterable

from sparseflow.core.map_speed import BOTH, DIRECT, MAP, WEIGHTS, WINOGRAD, MapRun
from sparseflow.report import words
from sparseflow.report.document import Cell, Column, Document, Section, Table, report
from sparseflow.report.kinds.kernels import ran
from sparseflow.studies.goals import map_goal
from sparseflow.studies.kernel_results import FeatureMapResults


@report("feature-maps", FeatureMapResults)
def feature_maps(results: FeatureMapResults) -> Document:
    """The document of ``benchmarks/feature_maps.py``."""
    runs = tuple(results.cases.values())
    judged = [run for run in runs if map_goal(run) is not None]
    alone = [r for r in runs if r.judged == MAP and r.layer.op == "conv2d"]
    maps = _maps([r for r in alone if r.tiles == 1.0])
    both = _both([r for r in runs if r.judged == BOTH])
    linear = _linear([r for r in runs if r.layer.op == "linear"])
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
            ran(results.machine, results.command),
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


def _time(run: MapRun, use: str) -> str:
    return words.duration(run.times_s[use]) if use in run.times_s else "–"


def _efficiency(run: MapRun) -> str:
    return "–" if run.efficiency is None else words.percent(run.efficiency, 0)


def _density(run: MapRun) -> str:
    return words.percent(run.map_density, 0)


def _gain(run: MapRun) -> tuple[Cell | str, ...]:
    """The columns of `_GAIN`."""
    return _over_direct(run), words.times(run.speedup(WINOGRAD)), _efficiency(run)


_GAIN = ("× direct", "× Winograd", "% of peak")


def _maps(runs: Iterable[MapRun]) -> Table:
    rows = (
        (r.layer.name, _density(r), _time(r, MAP), *_gain(r), _time(r, DIRECT), _time(r, WINOGRAD))
        for r in runs
    )
    return Table.of(
        "Dense weights, sparse map, its index made for the next layer; % of peak counts what is multiplied",
        ("Layer", "Map density", "Time", *_GAIN, "Direct", "Winograd"),
        rows,
    )


def _both(runs: Iterable[MapRun]) -> Table:
    rows = []
    for r in runs:
        direct, winograd, peak = _gain(r)
        alone = (words.times(r.over_alone), peak, _time(r, WEIGHTS), _time(r, MAP))
        rows.append((r.layer.name, r.structure, _density(r), _time(r, BOTH), direct, winograd, *alone))
    titles = ("Map density", "Both", *_GAIN[:2], "× better alone", _GAIN[2], "Weights", "Map")
    return Table.of(
        "Sparse weights and sparse map together, beside the zeros of one side alone",
        ("Layer", Column("Weights", number=False), *titles),
        rows,
    )


def _tiles(runs: Iterable[MapRun]) -> Table:
    return Table.of(
        "Maps whose non-zeros lie in some tiles only, as in differences of frames",
        ("Layer", "Tiles not zero", "Map density", "Time", *_GAIN),
        ((r.layer.name, words.percent(r.tiles, 0), _density(r), _time(r, MAP), *_gain(r)) for r in runs),
    )


def _linear(runs: Iterable[MapRun]) -> Table:
    return Table.of(
        "A linear layer that does not read the weights of zero inputs",
        ("Layer", "Input density", "Time", "× dense", "Dense"),
        ((r.layer.name, _density(r), _time(r, MAP), _over_direct(r), _time(r, DIRECT)) for r in runs),
    )


def _kernels(runs: Iterable[MapRun]) -> Table:
    titles = ("Layer", "Weights", "Map density", "Kernel", "Dense kernel")
    rows = (
        (r.layer.name, r.structure, _density(r), r.kernels.get(r.judged, "–"), r.kernels.get(DIRECT, "–"))
        for r in runs
    )
    return Table.of("The fastest kernel of each case", [Column(t, number=False) for t in titles], rows)
