"""Raise ReLU thresholds until most of each feature map is zero, then let the engine skip those zeros.

    python examples/sparse_maps.py

Calibration inputs tell the compiler how dense each map is on real data; it gives a map an index of its zeros where that
pays. On a network as small as this it may pay nowhere, and the plan says why.
"""

from __future__ import annotations

import torch
from torch import nn

import sparseflow
from sparseflow.data import Augment, Batches, load_data
from sparseflow.train.activations import fit_thresholds, map_densities, sparsify_activations


def main() -> None:
    torch.manual_seed(0)
    data = load_data("mnist5k")
    train = Batches(data.train_images, data.train_labels, 100, data.statistics(), Augment(crop=1))
    batches = list(train)
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, labels in batches:
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    activations = sparsify_activations(model)  # ReLUs with a threshold each, 0 at first
    model.eval()
    fit = fit_thresholds(model, activations, batches[:5], budget=0.01)
    print(f"densities {fit.density_before} before, {fit.density_after} after")
    print(f"thresholds {fit.thresholds}")
    print(f"densities on other digits {map_densities(model, activations, batches[5:10])}")

    inputs = [x[:1] for x, _ in batches[:8]]  # real inputs, each of the shape that is compiled
    engine = sparseflow.compile(model, (inputs[0],), measure=False, calibration=inputs)
    for layer in engine.plan.layers:
        density = "not counted" if layer.map_density is None else f"{layer.map_density:.2f}"
        print(
            f"{layer.name}: input density {density}, kernel {layer.chosen.label}, {layer.map_note or 'index used'}"
        )
    with torch.inference_mode():
        same = [int(engine(x).argmax() == model(x).argmax()) for x in inputs]
    print(f"{sum(same)} of {len(same)} answers as torch's")
    assert all(same)


if __name__ == "__main__":
    main()
