"""``sparseflow explain``: why an engine runs each layer as it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseflow.cli import options, output
from sparseflow.core.codec import encode
from sparseflow.core.element_type import FLOAT32
from sparseflow.core.plan import Cut, LayerPlan, OperatorTime, Plan
from sparseflow.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table


def command(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="What `compile -o` wrote.")],
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="All candidates and rejections of one layer.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Run it here and show the time of every operator.")
    ] = False,
    json: options.JsonOption = None,
) -> None:
    """Show what ENGINE found in each layer, the kernel it chose and what that saves.

    **Examples**

        sparseflow explain resnet50.engine
        sparseflow explain resnet50.engine --layer layer1.0.conv2.weight
        sparseflow explain resnet50.engine --profile
    """
    from sparseflow.engine.runtime.manifest import read_manifest

    plan = read_manifest(engine).plan
    operators = _profile(engine) if profile else []
    chosen = _find(plan, layer, engine) if layer is not None else None
    data: dict[str, Any] = encode(plan)
    if operators:
        data["operators"] = encode(operators)
    if output.write_json(data, json):
        return
    console = output.stdout()
    if chosen is not None:
        for drawn in candidate_tables(chosen):
            console.print(drawn)
        return
    console.print(layer_table(plan))
    if plan.cuts:
        console.print(cut_table(plan.cuts))
    if plan.maps is not None:
        console.print(map_table(plan))
    if operators:
        console.print(operator_table(operators))


def layer_table(plan: Plan) -> Table:
    """One row for each layer with weights."""
    how = "measured" if plan.measured else "predicted"
    title = f"{len(plan.layers)} layers with weights, {plan.threads} thread(s), {how} on {plan.target}"
    if plan.exact:
        title += ", --exact"
    if plan.weights != FLOAT32.name:
        title += f", weights {plan.weights}"
    if plan.sparsify:
        title += f"\nsparsified: {plan.sparsify}"
    columns = ("layer", "weight", "structure", "density", "kernel", "values", "index", "tiles", "ms")
    drawn = output.table(title, *columns, numbers=("density", "values", "index", "tiles", "ms"))
    for layer in plan.layers:
        share = layer.tiles_computed / layer.tiles_total if layer.tiles_total else 1.0
        drawn.add_row(
            output.layer_name(layer.name),
            output.dims(layer.weight_shape),
            brief(layer.structure),
            f"{layer.density:.1%}",
            layer.chosen.label,
            output.size(layer.value_bytes),
            output.size(layer.index_bytes),
            f"{share:.0%}",
            output.milliseconds(layer.chosen.time_s),
        )
    values = sum(layer.value_bytes for layer in plan.layers)
    index = sum(layer.index_bytes for layer in plan.layers)
    total = sum(layer.chosen.time_s for layer in plan.layers)
    drawn.add_section()
    drawn.add_row(
        "all", "", "", "", "", output.size(values), output.size(index), "", output.milliseconds(total)
    )
    return drawn


def cut_table(cuts: Sequence[Cut]) -> Table:
    """What propagation took from each layer, before → after, and how residual sums come together."""
    from sparseflow.core.plan import cut_summary

    columns = ("layer", "filters", "channels", "million MACs", "weight", "sum: made + passed, added")
    numbers = ("filters", "channels", "million MACs", "weight")
    drawn = output.table(cut_summary(cuts), *columns, numbers=numbers)
    for cut in cuts:
        macs, weight = (n / 1e6 for n in cut.macs), (output.size(n) for n in cut.weight_bytes)
        drawn.add_row(
            output.layer_name(cut.name),
            " → ".join(map(str, cut.filters)),
            " → ".join(map(str, cut.channels)),
            " → ".join(f"{n:,.1f}" for n in macs),
            " → ".join(weight),
            cut.union,
        )
    return drawn


def map_table(plan: Plan) -> Table:
    """How dense each layer's input was when calibrated, which inputs carry an index, and why the others do not."""
    title = "feature maps\n" + "\n".join(
        note for note in plan.notes if "map index" in note or "no index" in note
    )
    columns = ("layer", "map", "density", "10–90 %", "index", "bytes", "plain above", "why not")
    drawn = output.table(title, *columns, numbers=("density", "10–90 %", "bytes", "plain above"))
    for layer, counted in zip(plan.layers, plan.maps.layers if plan.maps is not None else (), strict=True):
        drawn.add_row(
            output.layer_name(layer.name),
            output.dims(counted.shape),
            f"{counted.mean:.0%}",
            f"{counted.p10:.0%}–{counted.p90:.0%}",
            layer.map_format,
            output.size(layer.map_index_bytes) if layer.map_format else "",
            "" if layer.map_switch is None else f"{layer.map_switch:.0%}",
            layer.map_note.removeprefix("no index: "),
        )
    return drawn


def candidate_tables(layer: LayerPlan) -> list[Table]:
    """All candidates of a layer, fastest first, and the templates that do not apply, with the reason."""
    title = (
        f"{layer.name}: {layer.op} {output.dims(layer.weight_shape)} → {output.dims(layer.output_shape)}, "
        f"{brief(layer.structure)}, density {layer.density:.1%}"
    )
    if layer.note:
        title += f"\n{layer.note}"
    times = output.table(title, "candidate", "ms", "× chosen", "how", numbers=("ms", "× chosen"))
    for candidate in layer.candidates or (layer.chosen,):
        ratio = candidate.time_s / layer.chosen.time_s if layer.chosen.time_s else 1.0
        mark = " ← chosen" if candidate == layer.chosen else ""
        how = "measured" if candidate.measured else "predicted"
        times.add_row(candidate.label + mark, output.milliseconds(candidate.time_s), f"{ratio:.2f}", how)
    if not layer.rejected:
        return [times]
    reasons = output.table("do not apply", "kernel", "reason")
    for rejection in layer.rejected:
        reasons.add_row(rejection.template, rejection.reason)
    return [times, reasons]


def operator_table(operators: list[OperatorTime]) -> Table:
    """Time of every operator of one call, in order."""
    total = sum(operator.time_s for operator in operators)
    title = f"{len(operators)} operators, {output.milliseconds(total)} ms a call"
    drawn = output.table(title, "operator", "function", "ms", "share", numbers=("ms", "share"))
    for operator in operators:
        drawn.add_row(
            operator.name, operator.kind, output.milliseconds(operator.time_s), f"{operator.share:.1%}"
        )
    return drawn


def brief(structure: str) -> str:
    """A structure's text without its pattern library."""
    text, separator, rest = structure.partition(":=")
    return text + ("+connectivity" if separator and rest.endswith("+connectivity") else "")


def _find(plan: Plan, name: str, engine: Path) -> LayerPlan:
    matches = [layer for layer in plan.layers if layer.name == name]
    matches = matches or [layer for layer in plan.layers if name in layer.name]
    if len(matches) == 1:
        return matches[0]
    found = "no layer is" if not matches else f"{len(matches)} layers are"
    known = ", ".join(layer.name for layer in (matches or plan.layers)[:8])
    raise InputError(f"{engine}: {found} called {name!r}; there are {known}, …")


def _profile(engine: Path) -> list[OperatorTime]:
    from sparseflow import Engine
    from sparseflow.cli.models import random_inputs

    loaded = Engine.load(engine)
    with output.progress("profile"):
        return loaded.profile(*random_inputs(loaded.inputs))
