"""``sparseflow inspect``: what a model's weights hold, before anything is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseflow.cli import options, output
from sparseflow.cli.maps import inspect_maps
from sparseflow.cli.models import ModelRequest, load_model
from sparseflow.core.codec import encode
from sparseflow.errors import InputError
from sparseflow.report import words
from sparseflow.report.kinds.layers import cut_table, structure_text
from sparseflow.report.terminal import drawn

if TYPE_CHECKING:
    from rich.table import Table

    from sparseflow.cli.models import LoadedModel
    from sparseflow.core import StorageRow
    from sparseflow.core.plan import Cut


@dataclass(frozen=True)
class InspectedLayer:
    """One layer: what its zeros say and what storing it takes.

    Attributes
    ----------
    structure : str
        Found in the zeros; ``dense`` if there are too few.
    why : str
        Reason for that, in a sentence.
    pruned : str
        What ``--sparsify`` did; empty without it.
    storage : tuple of StorageRow
        Dense first, then the formats, smallest first; only dense for a dense layer.
    """

    name: str
    op: str
    role: str
    shape: tuple[int, ...]
    structure: str
    density: float
    why: str
    dead_filters: int
    dead_channels: int
    pruned: str
    storage: tuple[StorageRow, ...]

    @property
    def smallest(self) -> StorageRow:
        """The format of the fewest bytes."""
        return min((row for row in self.storage if not row.reason), key=lambda row: row.nbytes)


def command(
    model: options.ModelArgument,
    sparsify: options.SparsifyOption = None,
    include: options.IncludeOption = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="All formats of one layer.")] = None,
    cut: Annotated[
        bool, typer.Option("--cut", help="Show which filters and channels the compiler would cut out.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Count the zeros of every layer's input: a .npy or .npz file, or a data set's name.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="At most so many samples of DATA.")] = 256,
    time: Annotated[
        bool,
        typer.Option("--time", help="With --data: time the kernels that leave out zeros, layer by layer."),
    ] = False,
    json: options.JsonOption = None,
) -> None:
    """List every layer with weights: shape, structure found in its zeros, density, bytes in each format.

    The structure is found from the zeros alone. With --sparsify it shows what pruning would do, and which
    layers a structure does not fit. With --data it lists the feature maps instead: how dense they are on real
    data, and what work is left without their zeros; `report` draws the file of --json.

    **Examples**

        sparseflow inspect pruned.onnx
        sparseflow inspect zoo:vgg16 --sparsify pattern:4+connectivity@0.877
        sparseflow inspect pruned.pt2 --layer layer1.0.conv2.weight
        sparseflow inspect zoo:resnet18 --sparsify filter@0.5 --cut
        sparseflow inspect runs/cifar10/model.pt2 --data cifar10 --json maps.json
    """
    from sparseflow.engine.weights import formats_read

    if data is not None:
        if cut or layer is not None:
            raise InputError(f"{model}: --data lists feature maps; leave out --cut and --layer")
        request = ModelRequest(model, sparsify, tuple(include or ()))
        inspect_maps(request, data, samples, time, json)
        return
    if time:
        raise InputError(f"{model}: --time needs --data, which says how sparse the maps are")
    with output.progress("inspect") as say:
        loaded = load_model(ModelRequest(model, sparsify, tuple(include or ())))
        layers = inspect_layers(loaded, say)
        cuts = _cuts(loaded, say) if cut else ()
    kernels = formats_read()
    content: dict[str, Any] = {
        "model": model,
        "weights": loaded.weights,
        "sparsify": loaded.sparsified.label if loaded.sparsified is not None else None,
        "layers": encode(layers),
        "kernels": encode(kernels),
    }
    if cut:
        content["cuts"] = encode(cuts)
    named = {x.name: x for x in layers}
    chosen = output.find(named, layer, model) if layer is not None else None
    if output.write_json(content, json):
        return
    console = output.stdout()
    if chosen is not None:
        console.print(storage_table(chosen, kernels))
        return
    console.print(layer_table(loaded, layers))
    for line in left_dense(loaded):
        console.print(line, markup=False)
    if cuts:
        console.print(drawn(cut_table(cuts)))
    elif cut:
        console.print("nothing to cut: no filter and no channel is dead")


def inspect_layers(loaded: LoadedModel, say: Any) -> list[InspectedLayer]:
    """What each layer of a model holds."""
    from sparseflow.core import StorageRow
    from sparseflow.core import detect as detect_structure
    from sparseflow.core import storage_table as storage
    from sparseflow.engine.weights import weighted_layers

    notes = {}
    if loaded.sparsified is not None:
        notes = {r.name: "pruned" if r.pruned else r.reason for r in loaded.sparsified.layers}
    found = []
    for layer in weighted_layers(loaded.model):
        say(layer.name)
        seen = detect_structure(layer.weight)
        dense = seen.structure is None
        nbytes = int(layer.weight.nbytes)
        rows = (StorageRow("dense", nbytes, 0, 1.0),) if dense else storage(layer.weight)
        found.append(
            InspectedLayer(
                layer.name,
                layer.op,
                layer.role,
                tuple(int(n) for n in layer.weight.shape),
                "dense" if dense else str(seen.structure),
                seen.density,
                seen.reason,
                seen.dead_filters,
                seen.dead_channels,
                notes.get(layer.name, ""),
                tuple(rows),
            )
        )
    return found


def _cuts(loaded: LoadedModel, say: Any) -> tuple[Cut, ...]:
    """What propagation through the graph would take from each layer."""
    from sparseflow.engine.compile import cuts

    say("propagate")
    return cuts(loaded.imported())


def layer_table(loaded: LoadedModel, layers: list[InspectedLayer]) -> Table:
    """One row for each layer, and the sum."""
    title = f"{loaded.label} · {loaded.weights}"
    if loaded.sparsified is not None:
        title += f"\nsparsified: {loaded.sparsified.label}"
    columns = ("layer", "weight", "structure", "density", "dense", "smallest", "index", "format")
    made = output.table(title, *columns, numbers=("density", "dense", "smallest", "index"))
    for layer in layers:
        best = layer.smallest
        made.add_row(
            output.layer_name(layer.name) + (f" ({layer.role})" if layer.role else ""),
            words.shape(layer.shape),
            structure_text(layer.structure),
            f"{layer.density:.1%}",
            words.nbytes(layer.storage[0].nbytes),
            words.nbytes(best.nbytes),
            words.nbytes(best.index_bytes),
            best.format,
        )
    dense = sum(layer.storage[0].nbytes for layer in layers)
    small = sum(layer.smallest.nbytes for layer in layers)
    index = sum(layer.smallest.index_bytes for layer in layers)
    density = sum(layer.storage[0].nbytes * layer.density for layer in layers) / dense if dense else 1.0
    made.add_section()
    sizes = (words.nbytes(dense), words.nbytes(small), words.nbytes(index))
    made.add_row("all", "", "", f"{density:.1%}", *sizes, "")
    return made


def left_dense(loaded: LoadedModel) -> list[str]:
    """For each reason why layers were not pruned, a line with their names."""
    by_reason: dict[str, list[str]] = {}
    for layer in loaded.sparsified.layers if loaded.sparsified is not None else ():
        if not layer.pruned:
            by_reason.setdefault(layer.reason, []).append(output.layer_name(layer.name))
    return [f"not pruned, {reason}: {', '.join(names)}" for reason, names in by_reason.items()]


def storage_table(layer: InspectedLayer, kernels: dict[str, tuple[str, ...]]) -> Table:
    """Bytes of one layer in every format, and the kernels that read it."""
    title = f"{layer.name}: {words.shape(layer.shape)}, {structure_text(layer.structure)}\n{layer.why}"
    made = output.table(
        title, "format", "values", "index", "of dense", "read by", numbers=("values", "index", "of dense")
    )
    for row in layer.storage:
        if row.reason:
            made.add_row(row.format, "", "", "", row.reason)
        else:
            values, index = words.nbytes(row.value_bytes), words.nbytes(row.index_bytes)
            read_by = ", ".join(kernels[row.format.partition("(")[0]]) or "no kernel"
            made.add_row(row.format, values, index, f"{row.relative:.1%}", read_by)
    return made
