"""An ONNX file in, an engine out: the structure is found in the zeros of its weights.

    python examples/onnx_to_engine.py [MODEL.onnx [MODEL.engine]]

Without a file a small pruned network is exported first.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime

import sparseflow


def export(path: Path) -> None:
    """Writes a small convolutional network, pruned to 2:4, to ``path``."""
    import torch
    from torch import nn

    from sparseflow.core import parse_sparsify
    from sparseflow.engine.sparsify import sparsify

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    sparsify(model, parse_sparsify("nm:2:4@0.5"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 3, 32, 32),), str(path), dynamo=False)


def main(arguments: list[str]) -> None:
    model = Path(arguments[0] if arguments else "small.onnx")
    if not arguments:
        export(model)
    engine = sparseflow.compile(
        model, measure=False
    )  # shapes={"input": (1, 3, 32, 32)} binds free dimensions

    rng = np.random.default_rng(0)
    inputs = {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in engine.inputs}
    wanted = onnxruntime.InferenceSession(str(model)).run(None, inputs)
    found = engine(*inputs.values())
    for ours, theirs in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    print("equal to ONNX Runtime")
    for layer in engine.plan.layers:
        print(f"{layer.name}: {layer.structure}, density {layer.density:.2f}")

    out = engine.save(arguments[1] if len(arguments) > 1 else model.with_suffix(".engine"))
    print(f"saved to {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
