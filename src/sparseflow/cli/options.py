"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.errors import ImportModelError

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .pt2 or .onnx file, or zoo:NAME (zoo:resnet50).")
]
SparsifyOption = Annotated[
    str | None,
    typer.Option(
        metavar="STRUCTURE@SPARSITY",
        help="Prune every eligible layer by magnitude first, e.g. unstructured@0.9, block:4x1@0.9, nm:2:4, "
        "filter@0.5, pattern:4+connectivity@0.877.",
    ),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ROLE", help="Prune stem, depthwise or classifier too; may be repeated."),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=1,3,224,224", help="Bind an input's free dimensions; may be repeated."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Batch size of a zoo model.")]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads", "-t", min=1, help="Threads of one call; at most the CPUs here where times are measured."
    ),
]
NoMeasureOption = Annotated[
    bool, typer.Option("--no-measure", help="Choose kernels by the cost model instead of timing them here.")
]
ExactOption = Annotated[
    bool,
    typer.Option(
        "--exact", help="Leave out kernels with a larger rounding error than direct sums (Winograd)."
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="Store weights as float32, bfloat16 or float16; half the bytes where a layer waits for memory.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="fp32; bf16: multiply pairs of bfloat16 where a kernel does; int8: quads of levels, see --calibrate; "
        "auto: int8 but where that moves a layer's sums too far.",
    ),
]
RangesOption = Annotated[
    str,
    typer.Option(
        metavar="METHOD",
        help="How int8 draws a map's range: min-max, percentile, mse, or a trained network's quantisation.json.",
    ),
]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help="Count the feature maps' zeros on DATA (.npy, .npz or a data set's name) and use them where that pays.",
    ),
]
SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="At most so many samples of DATA.")]
ReuseOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="RUN", help="Take equal first stages from this run's folder; may be repeated."),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON too; - for standard output alone."),
]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """``["x=1,3,224,224"]`` → ``{"x": (1, 3, 224, 224)}``.

    Raises
    ------
    ImportModelError
        If a text is not NAME=SIZES, a size is not a positive integer, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, equals, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.split(",")]
        if not (equals and name and all(part.isdecimal() and int(part) > 0 for part in parts)):
            raise ImportModelError(f"--shape {text}: not NAME=SIZES; write it as --shape input=1,3,224,224")
        if name in shapes:
            raise ImportModelError(f"--shape {text}: {name!r} is given twice; give each input one shape")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def parse_names(text: str) -> tuple[str, ...]:
    """The comma-separated names of ``text``, without empty ones and repetitions."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
