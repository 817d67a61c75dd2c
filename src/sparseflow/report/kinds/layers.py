"""Tables of a compiler's plan: what each layer holds, what runs it, and what else was tried."""

from __future__ import annotations

import math
import re

from sparseflow.core.plan import LayerPlan, Plan, cut_summary
from sparseflow.report import words
from sparseflow.report.document import Cell, Column, Fold, Table


def layer_table(plan: Plan, caption: str) -> Table:
    """One row a layer: structure found, density, bytes, tiles, kernel and its time."""
    size, unit = words.time_unit(layer.chosen.time_s for layer in plan.layers)
    longest = max((layer.chosen.time_s for layer in plan.layers), default=0.0) or 1.0
    columns: tuple[Column, ...] = (
        Column("Layer", number=False),
        Column(f"Time, {unit}" if plan.measured else f"Time predicted, {unit}"),
        Column("Structure found", number=False),
        Column("Density"),
        Column("Kernel", number=False),
        Column("Format", number=False),
        Column("Values + index"),
        Column("Tiles computed"),
        Column("Weight"),
        Column("Note", number=False),
    )
    rows = tuple(_layer(layer, size, longest) for layer in plan.layers)
    if not any(layer.note for layer in plan.layers):
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Table(caption, columns, rows)


def cuts(plan: Plan) -> Fold:
    """What propagation took from each layer, and how residual sums come together."""
    columns = (
        Column("Layer", number=False),
        Column("Filters"),
        Column("Channels"),
        Column("Million multiply-accumulates"),
        Column("Dense weight"),
        Column("Residual sum: made + passed, added", number=False),
    )
    rows = tuple(
        (
            Cell(cut.name),
            Cell(" → ".join(map(str, cut.filters))),
            Cell(" → ".join(map(str, cut.channels))),
            Cell(" → ".join(f"{n / 1e6:,.1f}" for n in cut.macs)),
            Cell(" → ".join(words.nbytes(n) for n in cut.weight_bytes)),
            Cell(cut.union),
        )
        for cut in plan.cuts
    )
    return Fold("What propagation cut", (Table(cut_summary(plan.cuts), columns, rows),))


def maps(plan: Plan) -> Fold:
    """How dense each layer's input was on the calibration data, and which inputs carry an index of their zeros."""
    columns = (
        Column("Layer", number=False),
        Column("Input", number=False),
        Column("Density"),
        Column("10th to 90th percentile"),
        Column("Map + index"),
        Column("Plain kernel above"),
        Column("Why no index", number=False),
    )
    counted = plan.maps.layers if plan.maps is not None else ()
    rows = tuple(
        (
            Cell(layer.name),
            Cell(words.shape(found.shape)),
            Cell(words.percent(found.mean), fraction=found.mean),
            Cell(f"{words.percent(found.p10)} to {words.percent(found.p90)}"),
            Cell(_indexed(found.shape, layer.map_index_bytes)),
            Cell("" if layer.map_switch is None else words.percent(layer.map_switch)),
            Cell(layer.map_note.removeprefix("no index: ")),
        )
        for layer, found in zip(plan.layers, counted, strict=True)
    )
    notes = "; ".join(note for note in plan.notes if "map index" in note or "no index" in note)
    return Fold("Feature maps and their index", (Table(notes, columns, rows),))


def _indexed(shape: tuple[int, ...], index_bytes: int) -> str:
    values = words.nbytes(4 * math.prod(shape))
    return f"{values} + {words.nbytes(index_bytes)}" if index_bytes else values


def _layer(layer: LayerPlan, size: float, longest: float) -> tuple[Cell, ...]:
    time_s = layer.chosen.time_s
    return (
        Cell(layer.name),
        Cell(words.digits(time_s / size), fraction=time_s / longest),
        Cell(_structure(layer.structure)),
        Cell(words.percent(layer.density)),
        Cell(layer.chosen.label),
        Cell(layer.format),
        Cell(_stored(layer)),
        Cell(f"{layer.tiles_computed:,} of {layer.tiles_total:,}"),
        Cell(words.shape(layer.weight_shape)),
        Cell(layer.note),
    )


def _structure(text: str) -> str:
    """A structure without its pattern library, which is long: ``pattern:4+connectivity, 8 patterns``."""
    found = re.search(r":=([0-9/]+)", text)
    if found is None:
        return "dense" if text == "Dense" else text
    count = len(found[1].split("/"))
    return f"{text.replace(found[0], '')}, {count} pattern{'s' if count != 1 else ''}"


def _stored(layer: LayerPlan) -> str:
    size, unit = words.byte_unit([layer.value_bytes])
    values, index = words.digits(layer.value_bytes / size), words.digits(layer.index_bytes / size)
    return f"{values} + {index} {unit}" if layer.index_bytes else f"{values} {unit}"


def candidates(plan: Plan) -> Fold:
    """All candidates' times and the reasons of the rejected, layer by layer."""
    times = Table(
        "Every candidate, fastest first; the chosen one in bold",
        (
            Column("Layer", number=False),
            Column("Candidate", number=False),
            Column("Time"),
            Column("How", number=False),
        ),
        tuple(
            (
                Cell(layer.name),
                Cell(candidate.label, strong=candidate == layer.chosen),
                Cell(words.duration(candidate.time_s), strong=candidate == layer.chosen),
                Cell("measured" if candidate.measured else "predicted"),
            )
            for layer in plan.layers
            for candidate in layer.candidates or (layer.chosen,)
        ),
    )
    reasons = Table(
        "Templates that do not apply",
        (Column("Layer", number=False), Column("Template", number=False), Column("Reason", number=False)),
        tuple(
            (Cell(layer.name), Cell(rejection.template), Cell(rejection.reason))
            for layer in plan.layers
            for rejection in layer.rejected
        ),
    )
    libraries = Table(
        "Pattern libraries: the positions, 0 to 8 from the top left, that a kernel may keep",
        (Column("Layer", number=False), Column("Structure", number=False)),
        tuple(
            (Cell(x.name), Cell(x.structure))
            for x in plan.layers
            if _structure(x.structure).removesuffix("s").endswith("pattern")
        ),
    )
    tables = tuple(table for table in (times, reasons, libraries) if table.rows)
    return Fold("All candidates' times, and what does not apply", tables)
