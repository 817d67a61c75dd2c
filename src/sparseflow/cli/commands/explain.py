"""``sparseflow explain``: why an engine runs each layer as it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseflow.cli import options, output
from sparseflow.core.codec import encode
from sparseflow.core.plan import LayerPlan, OperatorTime, Plan
from sparseflow.report import words
from sparseflow.report.kinds import layers
from sparseflow.report.kinds.layers import structure_text
from sparseflow.report.terminal import drawn

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
    named = {x.name: x for x in plan.layers}
    chosen = output.find(named, layer, str(engine)) if layer is not None else None
    data: dict[str, Any] = encode(plan)
    if operators:
        data["operators"] = encode(operators)
    if output.write_json(data, json):
        return
    console = output.stdout()
    if chosen is not None:
        for table in candidate_tables(chosen):
            console.print(table)
        return
    console.print(layer_table(plan))
    if plan.cuts:
        console.print(drawn(layers.cut_table(plan.cuts)))
    if plan.maps is not None:
        console.print(drawn(layers.map_table(plan)))
    if operators:
        console.print(operator_table(operators))


def layer_table(plan: Plan) -> Table:
    """One row for each layer with weights."""
    how = "measured" if plan.measured else "predicted"
    title = f"{len(plan.layers)} layers with weights, {plan.threads} thread(s), {how} on {plan.target}"
    if plan.exact:
        title += ", --exact"
    if plan.weights != Plan.weights:
        title += f", weights {plan.weights}"
    if plan.precision != Plan.precision:
        narrow = sum(layer.element != LayerPlan.element for layer in plan.layers)
        title += f", {narrow} of them in {plan.precision}"
    if plan.sparsify:
        title += f"\nsparsified: {plan.sparsify}"
    values = words.nbytes(sum(layer.value_bytes for layer in plan.layers))
    index = words.nbytes(sum(layer.index_bytes for layer in plan.layers))
    title += f"\nall: {values} of values, {index} of index, {output.milliseconds(plan.layers_s)} ms"
    return drawn(layers.layer_table(plan, title))


def candidate_tables(layer: LayerPlan) -> list[Table]:
    """All candidates of a layer, fastest first, and the templates that do not apply, with the reason."""
    title = (
        f"{layer.name}: {layer.op} {words.shape(layer.weight_shape)} → {words.shape(layer.output_shape)}, "
        f"{structure_text(layer.structure)}, density {layer.density:.1%}"
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
    made = output.table(title, "operator", "function", "ms", "share", numbers=("ms", "share"))
    for operator in operators:
        made.add_row(
            operator.name, operator.kind, output.milliseconds(operator.time_s), f"{operator.share:.1%}"
        )
    return made


def _profile(engine: Path) -> list[OperatorTime]:
    from sparseflow import Engine
    from sparseflow.cli.models import random_inputs

    loaded = Engine.load(engine)
    with output.progress("profile"):
        return loaded.profile(*random_inputs(loaded.inputs))
