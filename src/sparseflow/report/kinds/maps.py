"""The report of `sparseflow inspect --data`: how sparse the maps are, where, and what work that leaves."""

from __future__ import annotations

import numpy as np

from sparseflow.report import words
from sparseflow.report.document import (
    Bar,
    Bars,
    Card,
    Cards,
    Cell,
    Document,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    report,
)
from sparseflow.studies.map_results import VARIANTS, MapLayer, MapResults

_NAMES = {"dense": "no zeros", "weights": "zero weights", "maps": "zero activations", "both": "both"}


@report("maps", MapResults)
def build(results: MapResults) -> Document:
    """The document of the maps of a network."""
    sections = [
        Section("How dense the maps are", (_densities(results), _table(results))),
        Section("Where they are dense", (_places(results),)),
        Section("Work that is left", (_work(results),)),
    ]
    if any(layer.times_s for layer in results.layers):
        how = f"{results.machine}; threads: {results.threads}."
        sections.append(Section("Time of each kind of kernel", (_times(results), Text(how))))
    return Document(
        f"sparseflow inspect: {results.model}",
        f"{words.percent(1 - results.mean_density)} of the activations are zero on {results.data}",
        f"The input of every layer over {results.images} samples; the data themselves do not count.",
        (_cards(results),),
        tuple(sections),
    )


def _cards(results: MapResults) -> Cards:
    dense = results.macs("dense")
    cards = [Card(words.percent(1 - results.mean_density), "Sparsity of all maps", "weighted by elements")]
    for variant in VARIANTS[1:]:
        left = words.percent(results.macs(variant) / dense)
        cards.append(Card(left, f"Multiplications left without {_NAMES[variant]}"))
    return Cards(tuple(cards))


def _densities(results: MapResults) -> Bars:
    bars = tuple(
        Bar(
            layer.name,
            (("s1", 100 * layer.map.mean),),
            words.percent(layer.map.mean),
            100 * layer.map.p10,
            100 * layer.map.p90,
        )
        for layer in results.layers
    )
    caption = "Whiskers: 10th and 90th percentile of the samples. The first layer reads the data."
    return Bars("map-density", "Density of each layer's input", "%", bars, caption=caption)


def _table(results: MapResults) -> Table:
    titles = (
        "Layer",
        "Map",
        "Density",
        "p10–p90",
        "Pixels all zero",
        "4×4 tiles all zero",
        "8×8 tiles all zero",
        "Channels all zero",
        "Map",
        "Index",
    )
    rows = (
        (
            layer.name,
            words.shape(layer.map.shape),
            Cell(words.percent(layer.map.mean), fraction=layer.map.mean),
            f"{words.percent(layer.map.p10)}–{words.percent(layer.map.p90)}",
            words.percent(1 - layer.map.pixels),
            words.percent(1 - layer.map.tiles),
            words.percent(1 - layer.map.wide_tiles),
            words.percent(1 - layer.map.channels),
            words.nbytes(layer.map_bytes),
            words.nbytes(layer.index_bytes),
        )
        for layer in results.layers
    )
    return Table.of("Each layer's input; the index has one bit for each element", titles, rows)


def _places(results: MapResults) -> Pictures:
    pictures = tuple(_place(layer) for layer in results.layers if len(layer.map.shape) == 4)
    caption = "Mean over samples and channels of the elements that are not zero, in at most 8×8 cells."
    return Pictures("map-places", "Density over the map", pictures, caption, scale="density")


def _place(layer: MapLayer) -> Picture:
    density = np.array(layer.map.spatial, np.float32)
    alt = f"{layer.name}: {words.percent(float(density.min()))} to {words.percent(float(density.max()))}"
    return Picture(layer.name, alt, density, "s1")


def _work(results: MapResults) -> Table:
    def row(name: str, of: MapLayer | MapResults, strong: bool = False) -> tuple[Cell, ...]:
        dense = of.macs("dense")
        shares = [of.macs(variant) / max(dense, 1.0) for variant in VARIANTS[1:]]
        parts = (Cell(words.percent(share), fraction=share, strong=strong) for share in shares)
        return (Cell(name, strong=strong), Cell(f"{dense:,.0f}", strong=strong), *parts)

    rows = [row(layer.name, layer) for layer in results.layers]
    rows.append(row("all, the data taken as dense", results, strong=True))
    caption = "Multiply-accumulates left; for both, zeros of weights and maps are taken to fall independently"
    left = (f"Without {_NAMES[v]}" for v in VARIANTS[1:])
    return Table.of(caption, ("Layer", "Multiplications", *left), rows)


def _times(results: MapResults) -> Table:
    rows = []
    for layer in results.layers:
        best, times = min(layer.times_s.values(), default=0.0), [layer.times_s.get(v) for v in VARIANTS]
        cells = (Cell("–") if t is None else Cell(words.duration(t), strong=t == best) for t in times)
        rows.append((Cell(layer.name), *cells))
    caption = "The fastest kernel of each kind, measured alone; the fastest of all in bold"
    return Table.of(caption, ("Layer", *(f"Without {_NAMES[v]}" for v in VARIANTS)), rows)
