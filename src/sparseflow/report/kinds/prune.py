"""The report of `sparseflow prune`: what was removed, layer by layer, and what it did to the accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from sparseflow.report import words
from sparseflow.report.document import (
    REPORTS,
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Document,
    Line,
    Lines,
    Section,
    Table,
)
from sparseflow.studies.results import read

_SERIES = ("neutral", "s1", "s3", "s2", "s4")


@dataclass(frozen=True)
class PrunedLayer:
    """One layer with weights."""

    name: str
    kind: str
    shape: tuple[int, ...]
    structure: str
    kept: int

    @property
    def total(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class SparseMap:
    """The map of an activation that the training put in."""

    name: str
    density: float
    size: int
    threshold: float | None


@dataclass(frozen=True)
class PruneReport:
    """What `sparseflow.train` writes of a recipe's run, as far as the report shows it; no torch needed."""

    recipe: str
    dense_accuracy: float
    pruned_accuracy: float
    layers: tuple[PrunedLayer, ...]
    history: dict[str, tuple[dict[str, float], ...]]
    conv_compression: float
    seconds: float
    model_path: str = ""
    exported_path: str = ""
    maps: tuple[SparseMap, ...] = ()
    map_density: float | None = None

    @property
    def points_lost(self) -> float:
        """Accuracy lost, in percentage points."""
        return 100 * (self.dense_accuracy - self.pruned_accuracy)

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures pruned to, each once."""
        return tuple(dict.fromkeys(x.structure for x in self.layers if x.structure != "dense"))

    @property
    def kept(self) -> int:
        """Weights left."""
        return sum(layer.kept for layer in self.layers)

    @property
    def total(self) -> int:
        """Weights of the dense network."""
        return sum(layer.total for layer in self.layers)


@REPORTS.register("prune")
def build(data: dict[str, Any], where: str) -> Document:
    """The document of a recipe's results.

    Raises
    ------
    SparseflowError
        If ``data`` is not what `sparseflow prune` writes.
    """
    result = read(PruneReport, data, where, partial=True)
    structures = ", ".join(result.structures) or "nothing pruned"
    headline = (
        f"{structures}: {words.times(result.conv_compression)} fewer convolution weights, "
        f"{words.points(result.points_lost)} points of accuracy"
    )
    lede = (
        f"{words.percent(result.dense_accuracy, 2)} dense, {words.percent(result.pruned_accuracy, 2)} "
        f"pruned, on the test data; {words.span(result.seconds)} of training."
    )
    sections = [Section("Layer by layer", (_layers(result),))]
    if result.maps:
        sections.append(Section("Feature maps", (_maps(result),)))
    if any(result.history.values()):
        sections.insert(0, Section("Training", _training(result)))
    files = tuple((Cell(name), Cell(path)) for name, path in _files(result) if path)
    if files:
        columns = (Column("", number=False), Column("", number=False))
        sections.append(Section("Files", (Table("What the run left behind", columns, files),)))
    return Document(f"sparseflow prune: {result.recipe}", headline, lede, (_cards(result),), tuple(sections))


def _files(result: PruneReport) -> tuple[tuple[str, str], ...]:
    return ("Pruned weights", result.model_path), ("Exported model", result.exported_path)


def _cards(result: PruneReport) -> Cards:
    note = f"dense {words.percent(result.dense_accuracy, 2)}"
    sparse = result.map_density
    maps = () if sparse is None else (Card(words.percent(1 - sparse), "Sparsity of the feature maps"),)
    return Cards(
        (
            Card(words.percent(result.pruned_accuracy, 2), "Accuracy, pruned", note),
            Card(words.points(result.points_lost), "Points of accuracy"),
            Card(words.times(result.conv_compression), "Fewer convolution weights"),
            Card(
                words.percent(1 - result.kept / max(result.total, 1)),
                "Sparsity of all weights",
                f"{result.kept:,} of {result.total:,} kept",
            ),
            *maps,
        )
    )


def _maps(result: PruneReport) -> Table:
    columns = (Column("Activation", number=False), Column("Elements"), Column("Density"), Column("Threshold"))
    rows = tuple(
        (
            Cell(m.name),
            Cell(f"{m.size:,}"),
            Cell(words.percent(m.density), fraction=m.density),
            Cell("–" if m.threshold is None else words.digits(m.threshold)),
        )
        for m in result.maps
    )
    return Table("Non-zeros of each activation's map, over test samples", columns, rows)


def _training(result: PruneReport) -> tuple[Block, ...]:
    accuracy, start = [], 0
    rows = []
    for (stage, epochs), series in zip(result.history.items(), _SERIES * len(result.history), strict=False):
        numbers = tuple(float(start + i + 1) for i in range(len(epochs)))
        values = tuple(100 * epoch["accuracy"] for epoch in epochs if "accuracy" in epoch)
        if epochs and len(values) == len(epochs):
            accuracy.append(Line(stage, series, numbers, values))
        start += len(epochs)
        last = epochs[-1] if epochs else {}
        rows.append(
            (
                Cell(stage),
                Cell(str(len(epochs))),
                Cell(words.digits(last["loss"]) if "loss" in last else "–"),
                Cell(words.percent(last["accuracy"], 2) if "accuracy" in last else "–"),
                Cell(words.digits(sum(e.get("seconds", 0.0) for e in epochs))),
            )
        )
    columns = (
        Column("Stage", number=False),
        Column("Epochs"),
        Column("Last loss"),
        Column("Last accuracy"),
        Column("Seconds"),
    )
    table = Table("The stages of the recipe", columns, tuple(rows))
    if not accuracy:
        return (table,)
    caption = "During ADMM the weights are still dense; the masks come at its end."
    figure = Lines("accuracy", "Test accuracy", "epoch", "accuracy, %", tuple(accuracy), caption)
    return figure, table


def _layers(result: PruneReport) -> Table:
    columns = (
        Column("Layer", number=False),
        Column("Kind", number=False),
        Column("Weight"),
        Column("Structure", number=False),
        Column("Kept"),
        Column("Of"),
        Column("Sparsity"),
    )
    rows = tuple(
        (
            Cell(x.name),
            Cell(x.kind),
            Cell(words.shape(x.shape)),
            Cell(x.structure),
            Cell(f"{x.kept:,}"),
            Cell(f"{x.total:,}"),
            Cell(words.percent(1 - x.kept / x.total), fraction=1 - x.kept / x.total),
        )
        for x in result.layers
    )
    return Table("Structures and weights kept, as the masks have them", columns, rows)
