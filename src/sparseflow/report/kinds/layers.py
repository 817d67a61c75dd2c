"""Tables of a compiler's plan: what each layer holds, what runs it, and what else was tried."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sparseflow.core.plan import Cut, LayerPlan, Plan, cut_summary
from sparseflow.report import words
from sparseflow.report.document import Cell, Column, Fold, Table


def layer_table(plan: Plan, caption: str) -> Table:
    """One row a layer: structure found, density, bytes, tiles, kernel and its time."""
    size, unit = words.time_unit(layer.chosen.time_s for layer in plan.layers)
    longest = max((layer.chosen.time_s for layer in plan.layers), default=0.0) or 1.0
    titles: tuple[str | Column, ...] = (
        "Layer",
        f"Time, {unit}" if plan.measured else f"Time predicted, {unit}",
        Column("Structure found", number=False),
        "Density",
        Column("Kernel", number=False),
        Column("Format", number=False),
        "Values + index",
        "Tiles computed",
        "Weight",
        Column("Note", number=False),
    )
    rows = [_layer(layer, size, longest) for layer in plan.layers]
    if not any(layer.note for layer in plan.layers):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return Table.of(caption, titles, rows)


def cut_table(cuts: Sequence[Cut]) -> Table:
    """What propagation took from each layer, and how residual sums come together."""
    titles = (
        "Layer",
        "Filters",
        "Channels",
        "Million multiply-accumulates",
        "Dense weight",
        Column("Residual sum: made + passed, added", number=False),
    )
    rows = (
        (
            cut.name,
            " → ".join(map(str, cut.filters)),
            " → ".join(map(str, cut.channels)),
            " → ".join(f"{n / 1e6:,.1f}" for n in cut.macs),
            " → ".join(words.nbytes(n) for n in cut.weight_bytes),
            cut.union,
        )
        for cut in cuts
    )
    return Table.of(cut_summary(cuts), titles, rows)


def map_table(plan: Plan) -> Table:
    """How dense each layer's input was on the calibration data, and which inputs carry an index of their zeros."""
    titles = (
        "Layer",
        Column("Input", number=False),
        "Density",
        "10th to 90th percentile",
        "Map + index",
        "Plain kernel above",
        Column("Why no index", number=False),
    )
    counted = plan.maps.layers if plan.maps is not None else ()
    rows = (
        (
            layer.name,
            words.shape(found.shape),
            Cell(words.percent(found.mean), fraction=found.mean),
            f"{words.percent(found.p10)} to {words.percent(found.p90)}",
            _indexed(found.shape, layer),
            "" if layer.map_switch is None else words.percent(layer.map_switch),
            layer.map_note.removeprefix("no index: "),
        )
        for layer, found in zip(plan.layers, counted, strict=True)
    )
    notes = "; ".join(note for note in plan.notes if "map index" in note or "no index" in note)
    return Table.of(notes, titles, rows)


def _indexed(shape: tuple[int, ...], layer: LayerPlan) -> str:
    values = words.nbytes(4 * math.prod(shape))
    if not layer.map_index_bytes:
        return values
    return f"{values} + {words.nbytes(layer.map_index_bytes)} ({layer.map_format})"


def _layer(layer: LayerPlan, size: float, longest: float) -> tuple[str | Cell, ...]:
    time_s = layer.chosen.time_s
    return (
        layer.name,
        Cell(words.digits(time_s / size), fraction=time_s / longest),
        structure_text(layer.structure),
        words.percent(layer.density),
        layer.chosen.label,
        layer.format,
        _stored(layer),
        f"{layer.tiles_computed:,} of {layer.tiles_total:,}",
        words.shape(layer.weight_shape),
        layer.note,
    )


def structure_text(text: str) -> str:
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
    kernel, structure = Column("Candidate", number=False), Column("Structure", number=False)
    times = Table.of(
        "Every candidate, fastest first; the chosen one in bold",
        ("Layer", kernel, "Time", Column("How", number=False)),
        (
            (
                layer.name,
                Cell(candidate.label, strong=candidate == layer.chosen),
                Cell(words.duration(candidate.time_s), strong=candidate == layer.chosen),
                "measured" if candidate.measured else "predicted",
            )
            for layer in plan.layers
            for candidate in layer.candidates or (layer.chosen,)
        ),
    )
    reasons = Table.of(
        "Templates that do not apply",
        ("Layer", Column("Template", number=False), Column("Reason", number=False)),
        ((layer.name, no.template, no.reason) for layer in plan.layers for no in layer.rejected),
    )
    libraries = Table.of(
        "Pattern libraries: the positions, 0 to 8 from the top left, that a kernel may keep",
        ("Layer", structure),
        (
            (x.name, x.structure)
            for x in plan.layers
            if structure_text(x.structure).removesuffix("s").endswith("pattern")
        ),
    )
    tables = tuple(table for table in (times, reasons, libraries) if table.rows)
    return Fold("All candidates' times, and what does not apply", tables)
