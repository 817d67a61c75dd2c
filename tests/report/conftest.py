"""Results as the studies write them, of plausible size, for the renderers to draw."""

from __future__ import annotations

import numpy as np
import pytest

from sparseflow.core.plan import CandidateTime, LayerPlan, Measurement, Plan, Rejection
from sparseflow.studies.results import (
    Environment,
    FormatBytes,
    MaskPicture,
    QuickstartResult,
    Timing,
    Variant,
)

LAYERS = (("conv1", (32, 1, 3, 3), 28), ("conv2", (64, 32, 3, 3), 14), ("conv3", (128, 64, 3, 3), 7))
STRUCTURES = {
    "dense": ("dense", 1.0, 1),
    "unstructured": ("unstructured", 0.123, 1),
    "block": ("block:4x1", 0.123, 4),
    "pattern": ("pattern:4+connectivity", 0.123, 1),
}


def measurement(median_s: float) -> Measurement:
    return Measurement(
        median_s, 0.96 * median_s, 1.13 * median_s, 0.94 * median_s, 200, 1, "AMD EPYC avx512f, 2 cores"
    )


def layer_plan(name: str, shape: tuple[int, ...], side: int, structure: str, density: float) -> LayerPlan:
    weights = int(np.prod(shape))
    kept = int(weights * density)
    macs = weights * side * side
    chosen = CandidateTime("taps", {"R": 4, "rows": 2, "V": 2}, macs * density * 1e-11 + 1e-6, True)
    dense = CandidateTime("direct", {"R": 8, "V": 3}, macs * 1e-11 + 1e-6, True)
    candidates = (dense,) if density == 1.0 else (chosen, dense)
    return LayerPlan(
        name,
        "conv2d",
        shape,
        (1, shape[0], side, side),
        structure,
        density,
        "dense" if density == 1.0 else "taps",
        4 * kept,
        0 if density == 1.0 else kept + 4 * shape[0],
        weights // 4,
        kept // 4,
        macs,
        int(macs * density),
        candidates[0],
        candidates,
        (Rejection("winograd", "3×3 with stride 1 only; this one is pruned"),),
        "stem, left dense" if name == "conv1" else "",
    )


def variant(name: str) -> Variant:
    structure, density, _ = STRUCTURES[name]
    plan = Plan(
        tuple(layer_plan(n, s, side, structure, 1.0 if n == "conv1" else density) for n, s, side in LAYERS),
        "llvm -mcpu=znver5",
        1,
        True,
    )
    total = sum(int(np.prod(s)) for n, s, _ in LAYERS if n != "conv1")
    kept = int(total * density)
    accuracy = {"dense": 0.987, "unstructured": 0.986, "block": 0.981, "pattern": 0.9875}[name]
    storage = (FormatBytes("csr", 4 * kept, 4 * kept + 800), FormatBytes("bitmap", 4 * kept, total // 8))
    return Variant(name, structure, total, kept, accuracy, accuracy, 3.1e-7, storage, plan)


def mask(name: str) -> MaskPicture:
    rng = np.random.default_rng(7)
    shape = LAYERS[2][1]
    _, density, block = STRUCTURES[name]
    coarse = rng.random((shape[0] // block, *shape[1:])) < density
    return MaskPicture.of("conv3", name, np.repeat(coarse, block, axis=0))


@pytest.fixture
def quickstart() -> QuickstartResult:
    """A whole quick start result: four variants, two peers."""
    times = {"dense": 310e-6, "unstructured": 142e-6, "block": 96e-6, "pattern": 121e-6}
    timings = [Timing("sparseflow", name, measurement(t)) for name, t in times.items()]
    timings += [Timing(e, "dense", measurement(t)) for e, t in (("onnxruntime", 402e-6), ("torch", 733e-6))]
    return QuickstartResult(
        tuple(variant(name) for name in STRUCTURES),
        tuple(timings),
        tuple(mask(name) for name in STRUCTURES),
        Environment(
            "AMD EPYC avx512f, 2 cores", {"torch": "2.13"}, "sparseflow quickstart", "2026-01-02", 1, 0
        ),
        "MNIST-5k",
        4000,
        1000,
        {"train": 61.0, "prune": 110.5, "compile": 44.0, "measure": 12.0},
        ("Latency below 1 ms is sensitive to the clock.",),
    )


@pytest.fixture
def bench() -> dict[str, object]:
    """What `sparseflow bench` writes."""

    def line(engine: str, median: float, error: float) -> dict[str, object]:
        latency = {"median": median, "p10": 0.98 * median, "p90": 1.07 * median, "min": 0.97 * median}
        return {"engine": engine, "latency_ms": latency, "max_relative_error": error}

    return {
        "kind": "bench",
        "model": "zoo:resnet50",
        "sparsify": "block:4x1@0.9",
        "sparsify_method": "one-shot magnitude, not retrained",
        "weights": "seeded random",
        "reference": "torch",
        "skipped": [{"engine": "openvino", "reason": "not installed"}],
        "threads": 1,
        "results": [line("sparseflow", 9.8, 2e-6), line("onnxruntime", 40.1, 1e-6), line("torch", 87.0, 0.0)],
        "speedup_vs_best_peer": 4.09,
    }


@pytest.fixture
def prune() -> dict[str, object]:
    """What `sparseflow prune` writes."""

    def epochs(accuracies: tuple[float, ...]) -> list[dict[str, float]]:
        return [{"loss": 1 - a, "accuracy": a, "seconds": 4.0} for a in accuracies]

    def layer(name: str, shape: tuple[int, ...], structure: str, kept: int) -> dict[str, object]:
        kind = "conv" if len(shape) == 4 else "linear"
        return {"name": name, "kind": kind, "shape": shape, "structure": structure, "kept": kept}

    return {
        "kind": "prune",
        "recipe": "cifar10-pattern",
        "dense_accuracy": 0.931,
        "pruned_accuracy": 0.9285,
        "layers": [
            layer("conv1", (64, 24, 3, 3), "dense", 13824),
            layer("conv2", (128, 64, 3, 3), "pattern:4+connectivity", 9068),
            layer("fc", (10, 128), "dense", 1280),
        ],
        "history": {
            "1-dense": epochs((0.6, 0.8, 0.931)),
            "2-admm": epochs((0.92, 0.925)),
            "3-retrain": epochs((0.90, 0.9285)),
        },
        "conv_compression": 3.82,
        "seconds": 28.0,
        "model_path": "runs/x/model.pt",
        "exported_path": "runs/x/model.pt2",
        "recipe_text": {"name": "cifar10-pattern"},
    }
