"""The quick start's report: what sparsity bought on this machine, and what it cost."""

from __future__ import annotations

from sparseflow.report import masks, words
from sparseflow.report.document import (
    Bar,
    Bars,
    Block,
    Cell,
    Document,
    Fold,
    Ledger,
    Picture,
    Pictures,
    Point,
    Scatter,
    Section,
    Table,
    Text,
    report,
)
from sparseflow.report.kinds.layers import candidates, cut_table, layer_table
from sparseflow.studies.results import DENSE, OURS, QuickstartResult, Timing, Variant

_SERIES = ("neutral", "s1", "s2", "s3", "s4")


@report("quickstart", QuickstartResult)
def build(result: QuickstartResult) -> Document:
    """The document of a quick start's results."""
    pruned = [v for v in result.variants if v.name != DENSE]
    sections = (
        Section("Latency", (_latency(result),)),
        Section("Accuracy against latency", (_plot(result),)),
        Section("Index bytes against weight bytes", _storage(result)),
        Section("Work computed", _work(result)),
        Section("What the masks look like", _masks(result)),
        Section("Layer by layer", _layers(result)),
        Section("How it ran", _environment(result)),
    )
    title = f"sparseflow quick start: {result.data}"
    notes = (Text(note) for note in result.notes)
    summary: tuple[Block, ...] = (_summary(result), _ledger(result, pruned), *notes)
    return Document(title, _headline(result, pruned), _lede(result), summary, sections)


def _title(variant: Variant) -> str:
    return DENSE if variant.name == DENSE else variant.structure


def _series(result: QuickstartResult, name: str) -> str:
    names = [v.name for v in result.variants]
    return _SERIES[min(names.index(name), len(_SERIES) - 1)]


def _fastest(result: QuickstartResult, pruned: list[Variant]) -> Variant | None:
    timed = [v for v in pruned if result.speedup_vs_dense(v.name) is not None]
    return max(timed, key=lambda v: result.speedup_vs_dense(v.name) or 0.0, default=None)


def _headline(result: QuickstartResult, pruned: list[Variant]) -> str:
    best = _fastest(result, pruned)
    if best is None:
        return "Networks trained and compiled; none timed"
    text = (
        f"{_title(best)} at {words.percent(best.sparsity)} sparsity: "
        f"{words.faster(result.speedup_vs_dense(best.name) or 1.0)} than our own dense engine"
    )
    peer, ratio = result.best_peer, result.speedup_vs_best_peer(best.name)
    if peer is not None and ratio is not None:
        text += f", {words.faster(ratio)} than dense {peer.engine}"
    return f"{text}, {words.points(result.points_lost(best.name))} points of accuracy"


def _lede(result: QuickstartResult) -> str:
    environment = result.environment
    threads = "1 thread" if environment.threads == 1 else f"{environment.threads} threads"
    return (
        f"Trained on {result.train_images:,} and tested on {result.test_images:,} images; batch 1, fp32, "
        f"{threads}, {environment.machine}. All latencies from one interleaved run."
    )


def _summary(result: QuickstartResult) -> Table:
    dense = result.timing(DENSE)
    base = [dense.measurement.median_s] if dense else []
    size, unit = words.time_unit(base)
    fastest = _fastest(result, [v for v in result.variants if v.name != DENSE])
    rows = []
    for variant in result.variants:
        timing = result.timing(variant.name)
        m = timing.measurement if timing else None
        rows.append(
            (
                _title(variant),
                words.digits(m.median_s / size) if m else "–",
                Cell(words.times(result.speedup_vs_dense(variant.name)), strong=variant is fastest),
                Cell(words.times(result.speedup_vs_best_peer(variant.name)), strong=variant is fastest),
                words.spread(m.p10_s / size, m.p90_s / size) if m else "–",
                words.percent(variant.accuracy_engine, 2),
                "" if variant.name == DENSE else words.points(result.points_lost(variant.name)),
                words.percent(variant.sparsity),
                words.times(variant.compression),
                words.nbytes(variant.value_bytes + variant.index_bytes),
            )
        )
    return Table.of(
        "Speed-ups are ratios of medians from one run. Accuracy is the compiled engine's on the whole "
        "test set; sparsity is of the pruned layers' weights.",
        (
            "Network",
            f"Latency, {unit}",
            "vs dense",
            f"vs best peer{f' ({result.best_peer.engine})' if result.best_peer else ''}",
            "p10–p90",
            "Accuracy",
            "Points vs dense",
            "Sparsity",
            "Fewer weights",
            "Stored bytes",
        ),
        rows,
    )


def _ledger(result: QuickstartResult, pruned: list[Variant]) -> Ledger:
    gained: list[tuple[str, str]] = []
    paid: list[tuple[str, str]] = []
    dense_bytes = result.variant(DENSE).value_bytes
    for variant in pruned:
        good: list[str] = []
        bad: list[str] = []
        ratio, against_peer = result.speedup_vs_dense(variant.name), result.speedup_vs_best_peer(variant.name)
        if ratio is not None:
            peer = f" ({words.faster(against_peer)} than the best peer)" if against_peer is not None else ""
            (good if ratio > 1.02 else bad).append(f"{words.faster(ratio)} than dense{peer}")
        lost = result.points_lost(variant.name)
        (bad if lost >= 0.005 else good).append(f"{words.points(lost)} points of accuracy")
        stored = variant.value_bytes + variant.index_bytes
        (good if stored < dense_bytes else bad).append(
            f"{words.nbytes(stored)} stored instead of {words.nbytes(dense_bytes)}"
        )
        if variant.index_bytes:
            share = variant.index_bytes / max(variant.value_bytes, 1)
            bad.append(
                f"{words.nbytes(variant.index_bytes)} of index ({words.percent(share, 0)} of its values)"
            )
        gained.extend([(_title(variant), ", ".join(good))] if good else [])
        paid.extend([(_title(variant), ", ".join(bad))] if bad else [])
    dense, peer_timing = result.timing(DENSE), result.best_peer
    if dense is not None and peer_timing is not None:
        ratio = peer_timing.measurement.median_s / dense.measurement.median_s
        (gained if ratio > 1.02 else paid).append((DENSE, f"{words.faster(ratio)} than {peer_timing.engine}"))
    worst = max((v.max_relative_error for v in result.variants), default=0.0)
    paid.append(("all", f"outputs differ from torch by at most {worst:.1e} relative"))
    return Ledger(tuple(gained), tuple(paid))


def _latency(result: QuickstartResult) -> Bars:
    size, unit = words.time_unit(t.measurement.median_s for t in result.timings)
    ordered = sorted(result.timings, key=lambda t: -t.measurement.median_s)
    return Bars(
        "latency",
        "Latency, batch 1",
        unit,
        tuple(_latency_bar(result, t, size, unit) for t in ordered),
        caption="Median (10th–90th percentile, also the whisker), speed-up over our dense engine. Shorter is better. "
        "The peers run the same dense weights on the same input.",
    )


def _timing_title(result: QuickstartResult, timing: Timing) -> str:
    return f"{_title(result.variant(timing.variant))} · {timing.engine}"


def _latency_bar(result: QuickstartResult, timing: Timing, size: float, unit: str) -> Bar:
    m = timing.measurement
    series = _series(result, timing.variant) if timing.engine == OURS else "peer"
    text = f"{words.digits(m.median_s / size)} {unit} ({words.spread(m.p10_s / size, m.p90_s / size)})"
    ratio = result.speedup_vs_dense(timing.variant)
    if timing.engine == OURS and timing.variant != DENSE and ratio is not None:
        text += f" {words.times(ratio)}"
    label = _timing_title(result, timing)
    return Bar(label, ((series, m.median_s / size),), text, m.p10_s / size, m.p90_s / size)


def _plot(result: QuickstartResult) -> Scatter:
    size, unit = words.time_unit(t.measurement.median_s for t in result.timings)
    points = []
    for timing in result.timings:
        variant, m = result.variant(timing.variant), timing.measurement
        label = _timing_title(result, timing) if timing.engine != OURS else _title(variant)
        points.append(
            Point(
                label if variant.name == DENSE else f"{label}, {words.percent(variant.sparsity)} sparse",
                m.median_s / size,
                100 * variant.accuracy_engine,
                1 - variant.sparsity,
                _series(result, timing.variant) if timing.engine == OURS else "peer",
                m.p10_s / size,
                m.p90_s / size,
            )
        )
    return Scatter(
        "accuracy-latency",
        "Sparsity, accuracy and latency",
        f"latency, {unit} (less is better)",
        "test accuracy, %",
        tuple(points),
        "The area of a circle is the fraction of weights kept; up and to the left is better. "
        "The accuracy axis does not start at zero.",
    )


def _storage(result: QuickstartResult) -> tuple[Block, ...]:
    size, unit = words.byte_unit(v.value_bytes + v.index_bytes for v in result.variants)
    bars = tuple(
        Bar(
            _title(v),
            ((_series(result, v.name), v.value_bytes / size), ("index", v.index_bytes / size)),
            f"{words.digits(v.value_bytes / size)} + {words.digits(v.index_bytes / size)} {unit}",
        )
        for v in result.variants
    )
    figure = Bars(
        "storage",
        "Weights as the engine stores them",
        unit,
        bars,
        (("neutral", "values (in the network's colour)"), ("index", "index")),
        "Whole network, layers left dense included; padding and pointers counted.",
    )
    return figure, _formats(result)


def _formats(result: QuickstartResult) -> Table:
    """One row a format, those that suit the pruned networks first."""
    smallest = {v.name: min((f.total_bytes for f in v.storage), default=0) for v in result.variants}
    sizes: dict[str, list[int]] = {}
    for entry in (f for v in result.variants if v.name != DENSE for f in v.storage):
        sizes.setdefault(entry.format, []).append(entry.total_bytes)
    scale = words.byte_unit(f.total_bytes for v in result.variants for f in v.storage if f.format == DENSE)
    rows = (
        (Cell(name), *(_format_cell(v, name, smallest[v.name], scale[0]) for v in result.variants))
        for name in sorted(sizes, key=lambda name: min(sizes[name]))
    )
    caption = (
        f"The pruned layers in each format that can hold them: values + index, {scale[1]}; smallest in bold"
    )
    return Table.of(caption, ("Format", *(_title(v) for v in result.variants)), rows)


def _format_cell(variant: Variant, name: str, smallest: int, size: float) -> Cell:
    entry = next((f for f in variant.storage if f.format == name), None)
    if entry is None:
        return Cell("–")
    text = f"{words.digits(entry.value_bytes / size)} + {words.digits(entry.index_bytes / size)}"
    return Cell(text, strong=entry.total_bytes == smallest)


def _work(result: QuickstartResult) -> tuple[Block, ...]:
    bars = tuple(
        Bar(
            _title(v),
            ((_series(result, v.name), v.macs_computed / 1e6),),
            f"{words.digits(v.macs_computed / 1e6)} of {words.digits(v.macs_dense / 1e6)} M",
        )
        for v in result.variants
    )
    rows = (
        (
            _title(v),
            f"{v.tiles_computed:,}",
            f"{v.tiles_total:,}",
            words.percent(v.tiles_computed / max(v.tiles_total, 1)),
            f"{v.macs_computed:,}",
            words.percent(v.macs_computed / max(v.macs_dense, 1)),
        )
        for v in result.variants
    )
    titles = ("Network", "Tiles computed", "Tiles in all", "Share", "Multiply-adds", "Share")
    figure = Bars("work", "Multiply-adds for one image, millions", "M", bars)
    return figure, Table.of("A tile is a block of weights that the kernel multiplies at once", titles, rows)


def _masks(result: QuickstartResult) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for layer in dict.fromkeys(mask.layer for mask in result.masks):
        found = [m for m in result.masks if m.layer == layer]
        shape = words.shape(found[0].shape)
        grids, strips = [], []
        for mask in found:
            variant, keep = result.variant(mask.variant), mask.keep()
            series, title = _series(result, mask.variant), _title(variant)
            kept = words.percent(float(keep.mean()))
            alt = f"Mask of {layer} pruned to {title}: {kept} of the weights kept"
            if keep.ndim == 4:
                grids.append(Picture(f"{title}, {kept} kept", alt, masks.kernels(keep), series))
            strips.append(Picture(f"{title}, {kept} kept", alt, masks.matrix(keep), series))
        number = len(blocks)
        if grids:
            caption = (
                "Rows are filters, columns input channels, each cell a kernel; coloured weights are kept."
            )
            blocks.append(
                Pictures(f"masks-{number}", f"{layer} ({shape}): the first kernels", tuple(grids), caption)
            )
        whole = Pictures(
            f"masks-{number}-matrix",
            f"{layer} ({shape}): the whole layer",
            tuple(strips),
            "Rows are filters, columns are (input channel, dy, dx).",
            wide=True,
        )
        blocks.append(Fold(f"The whole of {layer}", (whole,)))
    return tuple(blocks) or (Text("No masks were saved."),)


def _layers(result: QuickstartResult) -> tuple[Block, ...]:
    blocks: list[Block] = [
        Text("The structure is found in the zeros of the weights, not taken from the recipe.")
    ]
    for variant in result.variants:
        caption = f"{_title(variant)}: what the compiler found and chose"
        blocks.append(layer_table(variant.plan, caption))
        fold = candidates(variant.plan)
        blocks.append(Fold(f"{_title(variant)}: {fold.title[0].lower()}{fold.title[1:]}", fold.blocks))
        blocks.extend(Text(note) for note in variant.plan.notes)
        if variant.plan.cuts:
            blocks.append(Fold("What propagation cut", (cut_table(variant.plan.cuts),)))
    return tuple(blocks)


def _environment(result: QuickstartResult) -> tuple[Block, ...]:
    environment = result.environment
    facts = {
        "Command": environment.command,
        "Machine": environment.machine,
        "Threads": str(environment.threads),
        "Seed": str(environment.seed),
        "Measured at": environment.created,
        **environment.versions,
    }
    table = Table.facts("Machine, versions, command", facts)
    total = sum(result.stage_seconds.values())
    rows = [
        (Cell(name), Cell(f"{s:.1f}", fraction=s / total if total else None))
        for name, s in result.stage_seconds.items()
    ]
    rows.append((Cell("total", strong=True), Cell(f"{total:.1f}", strong=True)))
    stages = Table.of("Time of each stage", ("Stage", "Seconds"), rows)
    checks = tuple(
        Text(
            f"{_title(v)}: torch classifies {words.percent(v.accuracy_torch, 2)} of the test set, the engine "
            f"{words.percent(v.accuracy_engine, 2)}; largest relative difference {v.max_relative_error:.1e}."
        )
        for v in result.variants
    )
    return (table, stages, *checks)
