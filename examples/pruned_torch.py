"""Prune a torch model, compile it, compare it with torch and with its dense self.

python examples/pruned_torch.py
"""

from __future__ import annotations

import torch
from torch import nn

import sparseflow
from sparseflow.core import parse_sparsify
from sparseflow.engine.sparsify import sparsify


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    ).eval()  # fmt: skip
    example = (torch.randn(1, 3, 64, 64),)
    dense = sparseflow.compile(model, example, measure=False)

    # One shot by magnitude, all but the first and the last layer, to see the speed; fine_tune.py keeps the accuracy.
    sparsify(model, parse_sparsify("block:4x1@0.9"))
    # measure=False takes the cost model's choice of kernels, within seconds; leave it out to time them here.
    sparse = sparseflow.compile(model, example, measure=False)

    with torch.inference_mode():
        torch.testing.assert_close(sparse(*example), model(*example), rtol=1e-3, atol=1e-3)
    for layer in sparse.plan.layers:
        print(f"{layer.name}: {layer.structure}, density {layer.density:.2f}, kernel {layer.chosen.label}")
    times = [engine.measure(*example, repeats=10).median_s for engine in (dense, sparse)]
    print(f"dense {times[0] * 1e3:.2f} ms, pruned {times[1] * 1e3:.2f} ms")

    sparse.save("pruned.engine")
    again = sparseflow.Engine.load("pruned.engine")  # needs neither torch nor a compiler
    assert torch.equal(again(*example), sparse(*example))
    print("saved and loaded: equal results")


if __name__ == "__main__":
    main()
