"""Generated kernels as text, so that a change of code generation is seen in review; small shapes keep them short.

    make snapshots

writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparseflow.core import parse_structure
from sparseflow.core.element_type import BFLOAT16, INT8, UINT8
from sparseflow.kernels.lane import operators
from sparseflow.kernels.target.cpu import AVX2, Cpu
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.workload import Layouts, Workload, natural_layouts

FOLDER = Path(__file__).parent
QUADS = Cpu.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"})
CONV = Workload(
    "conv2d", 1, 4, 8, 8, 4, (3, 3), padding=(1, 1, 1, 1), bias=True, activation="relu", target=AVX2
)
LINEAR = Workload("linear", 1, 24, 1, 1, 32, bias=True, activation="relu", target=AVX2)
MAPS = Workload("conv2d", 1, 64, 6, 6, 32, (3, 3), padding=(1, 1, 1, 1), map_density=0.2, target=AVX2)


def from_template(name: str, workload: Workload, sparsify: str, parameters: Mapping[str, int]) -> Any:
    """The kernel of a template for random weights with the zeros of ``STRUCTURE@SPARSITY`` (or ``dense``)."""
    weight = np.random.default_rng(0).random(workload.weight_shape) + 0.1
    if sparsify != "dense":
        structure, _, sparsity = sparsify.partition("@")
        weight *= parse_structure(structure).mask(weight, 1.0 - float(sparsity)).keep
    workload, template = workload.with_zeros_of(weight), TEMPLATES[name]
    assert template.refusal(workload) is None
    layouts = {"rows": Layouts(), "lanes": natural_layouts(workload), "pixels": workload.pixel_layouts()}
    return template.build(workload, Candidate(name, parameters), layouts[template.layout], "kernel")


def max_pool() -> Any:
    """The 3x3 max pool of a ResNet's stem, stride 2."""
    pool = operators.Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    shape = Workload("conv2d", 1, 4, 8, 8, 4, (3, 3), (2, 2), (1, 1, 1, 1), target=AVX2)
    out = shape.output_layout
    return operators.pool(pool, 1, shape.input_layout(out), out, 1, "kernel")


TILE = {"rows": 2, "V": 2, "chunk": 0, "order": 0}
SNAPSHOTS: Mapping[str, Callable[[], Any]] = {
    "direct": partial(from_template, "direct", CONV, "dense", {"R": 2, **TILE}),
    "taps": partial(from_template, "taps", CONV, "block:2x1@0.8", {"R": 2, **TILE}),
    "patterns": partial(from_template, "patterns", CONV, "pattern:4:=0134/1345@0.5556", {"R": 1, **TILE}),
    "few-rows": partial(from_template, "few-rows", LINEAR, "dense", {"B": 2, "ahead": 0}),
    "few-rows-bfloat16": partial(
        from_template,
        "few-rows",
        replace(LINEAR, weights=BFLOAT16),
        "dense",
        {"B": 2, "ahead": 256, "bits": 16},
    ),
    "few-rows-taps": partial(
        from_template, "few-rows-taps", LINEAR, "unstructured@0.9", {"R": 1, "U": 4, "ahead": 64}
    ),
    "few-rows-bitmap": partial(
        from_template,
        "few-rows-bitmap",
        replace(LINEAR, target=QUADS, maps=UINT8, weights=INT8, filters=40),
        "unstructured@0.5",
        {"B": 2, "ahead": 64, "skip": 1},
    ),
    "pixel-dense": partial(from_template, "pixel-dense", MAPS, "dense", {"VB": 2, "band": 2, "taps": 3}),
    "max-pool": max_pool,
}
"""Name of a file → the kernel in it."""


def text_of(name: str) -> str:
    """What belongs into the file ``name``.txt."""
    return str(SNAPSHOTS[name]().script()).rstrip() + "\n"
