"""Streams: a frame of which a part changed, against the whole network computed by our dense engine.

    python benchmarks/streams.py --out benchmarks/results

changes 1 to 100 % of a frame, as a square region or as scattered tiles, back and forth between two frames, and times
the stream engine and the dense engine in turn. ``streams.json`` is written after each case; ``--resume`` keeps what is
there, and ``--dense`` takes a saved engine of the model instead of compiling one. ``benchmarks/render.py`` puts the
tables into the docs. About 5 minutes for VGG-16.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import options
import torch

import sparseflow
from sparseflow import zoo
from sparseflow.core.codec import encode
from sparseflow.engine.measure.bench import pinned
from sparseflow.engine.target.machine import machine_name
from sparseflow.studies.records import Records
from sparseflow.studies.stream_results import StepRecord, StreamResults, StreamRun

NAME = "streams"
FRACTIONS = (0.1, 0.01, 0.05, 0.25, 0.5, 1.0)
PLACES = ("corner", "centre", "scattered")
TILE = 16  # side of a scattered tile, in pixels
Frame = np.ndarray[Any, Any]


def changed(frame: Frame, fraction: float, place: str) -> Frame:
    """A copy with new random values in a part of it."""
    random = np.random.default_rng(1)
    fresh = random.standard_normal(frame.shape, dtype=np.float32)
    height, width = frame.shape[2:]
    out = frame.copy()
    if place == "scattered":
        cells = [(r, c) for r in range(0, height, TILE) for c in range(0, width, TILE)]
        for i in random.permutation(len(cells))[: max(1, round(fraction * len(cells)))]:
            part = (..., slice(cells[i][0], cells[i][0] + TILE), slice(cells[i][1], cells[i][1] + TILE))
            out[part] = fresh[part]
        return out
    rows, cols = (max(1, round(size * fraction**0.5)) for size in (height, width))
    top, left = ((height - rows) // 2, (width - cols) // 2) if place == "centre" else (0, 0)
    part = (..., slice(top, top + rows), slice(left, left + cols))
    out[part] = fresh[part]
    return out


def measure(engines: tuple[Any, Any], frame: Frame, case: tuple[float, str, float], rounds: int) -> StreamRun:
    """One case: ``rounds`` calls of each engine, the frame changing each time."""
    (stream, dense), (fraction, place, threshold) = engines, case
    frames = [frame, changed(frame, fraction, place)]
    stream.threshold = threshold
    stream.reset()
    stream(frames[0])
    times: dict[str, list[float]] = {"stream": [], "dense": []}
    changes, errors = [], []
    for i in range(rounds):
        x = frames[(i + 1) % 2]
        start = time.perf_counter()
        mine = stream(x)
        middle = time.perf_counter()
        wanted = dense(x)
        times["dense"].append(time.perf_counter() - middle)
        times["stream"].append(middle - start)
        changes.append(stream.last)
        errors.append(float(np.abs(mine - wanted).max() / np.abs(wanted).max()))
    medians = [float(np.median(t)) for t in times.values()]
    steps = []
    for same in zip(*(c.steps for c in changes), strict=True):
        last, seconds = same[-1], float(np.median([s.time_s for s in same]))
        share = last.pixels / last.pixels_total
        tiles = last.tiles, last.tiles_total, last.tile
        steps.append(StepRecord(last.name, share, *tiles, last.macs, last.macs_reached, seconds))
    rest_s = float(np.median([c.rest_s for c in changes]))
    return StreamRun(fraction, place, threshold, medians[0], medians[1], max(errors), rest_s, tuple(steps))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; the exit code is the number of those that failed."""
    parser = options.parser(__doc__, NAME)
    parser.add_argument("--model", default="vgg16", help="a model of the zoo")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--thresholds", default="0,0.01,0.03", help="fractions of a map's largest magnitude")
    parser.add_argument("--dense", help="a saved engine of the same model")
    args = parser.parse_args(arguments)
    module, example = zoo.build(args.model, image_size=args.image_size)
    frame = example[0].numpy()
    with pinned(1), torch.inference_mode():
        how = {"measure": not args.no_measure, "progress": options.say}
        dense = (
            sparseflow.Engine.load(args.dense) if args.dense else sparseflow.compile(module, example, **how)
        )
        stream = sparseflow.compile_stream(module, example, **how)
        head = StreamResults(machine_name(), args.model, {}, options.command(NAME, arguments))
        records = Records(Path(args.out) / f"{NAME}.json", encode(head), args.resume)
        parts = [(float(f), place, float(t)) for f in args.fractions.split(",")
                 for t in args.thresholds.split(",") for place in PLACES]  # fmt: skip
        cases = [
            (
                f"{place} {fraction} {threshold}",
                lambda c=(fraction, place, threshold): encode(
                    measure((stream, dense), frame, c, args.rounds)
                ),
            )
            for fraction, place, threshold in parts
            if fraction < 1.0 or (place == PLACES[0] and threshold == 0.0)
        ]
        failed = records.run(cases, options.say, args.minutes)
    options.show(records.to_json(), records.path)
    return failed


if __name__ == "__main__":
    sys.exit(main())
