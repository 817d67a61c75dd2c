"""Networks of the studies as engines: compiled, and checked against torch on all test data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparseflow
from sparseflow.engine.measure.bench import max_relative_error, pinned
from sparseflow.errors import CompileError
from sparseflow.train.recipe.recipe import Recipe
from sparseflow.train.recipe.sources import Sources

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-3
"""Largest relative difference of an engine's outputs from torch's that is accepted."""


def test_arrays(recipe: Recipe) -> tuple[list[Array], Array]:
    """The recipe's test images one by one, (1, channels, height, width) each, and their labels."""
    images, labels = [], []
    for x, y in Sources(recipe).test():
        images += [image[None].copy() for image in np.asarray(x)]
        labels.append(np.asarray(y))
    return images, np.concatenate(labels)


def compile_and_check(
    folder: Path, images: list[Array], labels: Array, threads: int, measure: bool
) -> dict[str, Any]:
    """Compile ``model.pt2`` of a run to ``model.engine``.

    Returns
    -------
    dict
        ``accuracy`` of the engine, ``max_relative_error`` of its outputs, ``macs`` of one call.

    Raises
    ------
    CompileError
        If its outputs differ from torch's by more than `TOLERANCE`.
    """
    program = torch.export.load(folder / "model.pt2")
    with pinned(threads):
        engine = sparseflow.compile(program, threads=threads, measure=measure)
        outputs = np.concatenate([engine(image) for image in images])
    accuracy, error = checked(outputs, program.module(), (images, labels), str(folder), TOLERANCE)
    engine.save(folder / "model.engine")
    return {
        "accuracy": accuracy,
        "max_relative_error": error,
        "macs": sum(layer.macs_computed for layer in engine.plan.layers),
    }


def checked(
    outputs: Array, module: nn.Module, data: tuple[list[Array], Array], where: str, tolerance: float
) -> tuple[float, float]:
    """Accuracy of an engine's outputs (count, classes), and their largest relative difference from the module's.

    Raises
    ------
    CompileError
        If they differ by more than ``tolerance``.
    """
    images, labels = data
    with torch.inference_mode():
        expected = np.concatenate([np.asarray(module(torch.from_numpy(image))) for image in images])
    error = max_relative_error([outputs], [expected])
    if not error <= tolerance:
        raise CompileError(
            f"{where}: the engine's outputs differ from torch's by {error:.2g} relative, more than {tolerance:g}; "
            "nothing was timed: please report this"
        )
    return float(np.mean(outputs.argmax(1) == labels)), error
