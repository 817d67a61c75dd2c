"""The report of `sparseflow prune`: what was removed, layer by layer, and what it did to the accuracy."""

from __future__ import annotations

from sparseflow.core.map_ranges import MapRanges
from sparseflow.core.prune_result import PruneResult
from sparseflow.report import words
from sparseflow.report.document import (
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
    report,
)

_SERIES = ("neutral", "s1", "s3", "s2", "s4")


@report("prune", PruneResult, partial=True)
def build(result: PruneResult) -> Document:
    """The document of a recipe's results."""
    structures = ", ".join(result.structures) or "nothing pruned"
    headline = (
        f"{structures}: {words.times(result.conv_compression)} fewer convolution weights, "
        f"{words.points(result.points_lost)} points of accuracy"
    )
    lede = (
        f"{words.percent(result.dense_accuracy, 2)} dense, {words.percent(result.pruned_accuracy, 2)} "
        f"pruned, on the test data; {_validation(result)}{words.span(result.seconds)} of training."
    )
    sections = [Section("Layer by layer", (_layers(result),))]
    if result.maps:
        sections.append(Section("Feature maps", (_maps(result),)))
    if result.quantised is not None:
        sections.append(Section("Low precision", (_levels(result.quantised),)))
    if any(result.history.values()):
        sections.insert(0, Section("Training", _training(result)))
    files = {"Pruned weights": result.model_path, "Exported model": result.exported_path}
    if result.quantisation_path:
        files["Ranges of maps"] = result.quantisation_path
    if any(files.values()):
        sections.append(Section("Files", (Table.facts("What the run left behind", files),)))
    return Document(f"sparseflow prune: {result.recipe}", headline, lede, (_cards(result),), tuple(sections))


def _cards(result: PruneResult) -> Cards:
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


def _validation(result: PruneResult) -> str:
    """The accuracies on held-out training images, on which stages are judged; nothing without them."""
    if result.dense_validation is None or result.pruned_validation is None:
        return ""
    return (
        f"{words.percent(result.dense_validation, 2)} and {words.percent(result.pruned_validation, 2)} on the "
        "validation data; "
    )


def _levels(ranges: MapRanges) -> Table:
    rows = (
        (
            x.layer,
            str(x.weight_bits),
            str(x.bits),
            words.digits(x.low),
            words.digits(x.high),
            str(x.zero_point),
        )
        for x in ranges.layers
    )
    titles = ("Layer", "Bits of a weight", "Bits of its map", "Lowest", "Highest", "Code of zero")
    return Table.of(
        "Levels of weights and of the maps that layers read; the others are in float32", titles, rows
    )


def _maps(result: PruneResult) -> Table:
    rows = (
        (
            m.name,
            f"{m.size:,}",
            Cell(words.percent(m.density), fraction=m.density),
            "–" if m.threshold is None else words.digits(m.threshold),
        )
        for m in result.maps
    )
    titles = ("Activation", "Elements", "Density", "Threshold")
    return Table.of("Non-zeros of each activation's map, over test samples", titles, rows)


def _training(result: PruneResult) -> tuple[Block, ...]:
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
                stage,
                str(len(epochs)),
                words.digits(last["loss"]) if "loss" in last else "–",
                words.percent(last["accuracy"], 2) if "accuracy" in last else "–",
                words.digits(sum(e.get("seconds", 0.0) for e in epochs)),
            )
        )
    titles = ("Stage", "Epochs", "Last loss", "Last accuracy", "Seconds")
    table = Table.of("The stages of the recipe", titles, rows)
    if not accuracy:
        return (table,)
    caption = "During ADMM the weights are still dense; the masks come at its end."
    data = "Test" if result.pruned_validation is None else "Validation"
    figure = Lines("accuracy", f"{data} accuracy", "epoch", "accuracy, %", tuple(accuracy), caption)
    return figure, table


def _layers(result: PruneResult) -> Table:
    rows = (
        (
            x.name,
            x.kind,
            words.shape(x.shape),
            x.structure,
            f"{x.kept:,}",
            f"{x.total:,}",
            Cell(words.percent(x.sparsity), fraction=x.sparsity),
        )
        for x in result.layers
    )
    kind, structure = Column("Kind", number=False), Column("Structure", number=False)
    titles = ("Layer", kind, "Weight", structure, "Kept", "Of", "Sparsity")
    return Table.of("Structures and weights kept, as the masks have them", titles, rows)
