"""What the tests of methods share: a small network with every kind of layer, batches, and a training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparseflow.core.structures import STRUCTURES, Structure, parse_structure
from sparseflow.errors import StructureError
from sparseflow.train.methods import METHODS, InTraining, MaskedWeights, Method, OneShot
from sparseflow.train.rules import Rule

EPOCHS, STEPS = 3, 4
SETTINGS: dict[str, dict[str, Any]] = {
    "gradual": {"update_every": 2},
    "movement": {"update_every": 2},
    "rigl": {"update_every": 2},
}
"""Rhythms that fit into the few steps of these tests; other methods run with their defaults."""


class TinyNet(nn.Module):
    """A stem, a convolution, a depthwise one, two linear layers; (N, 1, 8, 8) → (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.deep(torch.relu(self.body(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def model() -> TinyNet:
    """The network, always the same."""
    torch.manual_seed(0)
    return TinyNet()


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """32 samples that can be told apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (32,), generator=generator)
    x = torch.randn(32, 1, 8, 8, generator=generator) * 0.3
    for i in range(32):
        x[i, 0, 2 * int(y[i])] += 1.5
    return x, y


def density_for(structure: Structure) -> float:
    """A density that the structure can have."""
    fixed = structure.fixed_density
    return fixed if fixed is not None else min(0.25, structure.max_density)


def layer_for(name: str) -> tuple[Structure, str]:
    """The example of a structure, and a layer of `TinyNet` that it fits."""
    structure = parse_structure(STRUCTURES[name].example)
    for layer in ("body", "hidden"):
        try:
            structure.check(tuple(model().get_submodule(layer).weight.shape))
        except StructureError:
            continue
        return structure, layer
    raise AssertionError(f"the tiny network has no layer for {structure}")


def make(name: str, net: nn.Module, rules: list[Rule], epochs: int = EPOCHS, **changes: Any) -> Method:
    """The method with settings for a short run."""
    method = METHODS[name]
    values = SETTINGS.get(name, {}) | changes
    if issubclass(method, InTraining):
        values = {"epochs": epochs} | values
    return method(net, rules, method.Settings(**values))


def run(method: Method, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Calibrate or train as the method needs it, finish and apply the masks."""
    if isinstance(method, OneShot):
        method.calibrate([batch(i) for i in range(STEPS)])
    elif isinstance(method, InTraining):
        net = method.model
        optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for epoch in range(method.settings.epochs):
            train_epoch(method, optimizer, epoch)
    masks = method.finish()
    MaskedWeights(method.model, masks)
    return masks


def train_epoch(method: InTraining, optimizer: torch.optim.Optimizer, epoch: int) -> str:
    """One epoch in the order of calls that `InTraining` states."""
    method.begin_epoch(epoch, STEPS)
    for step in range(STEPS):
        x, y = batch(epoch * STEPS + step)
        loss = F.cross_entropy(method.model(x), y)
        penalty = method.penalty()
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        method.before_step()
        optimizer.step()
        method.after_step()
    return method.after_epoch(epoch + 1)
