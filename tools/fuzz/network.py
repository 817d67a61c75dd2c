"""A network as plain data: a list of module calls, printed as the Python that makes it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from . import modules


@dataclass(frozen=True)
class Step:
    """One call of a module.

    Attributes
    ----------
    module : str
        A class of `torch.nn` or of `modules`.
    args, options : what the class is called with
    inputs : tuple of int
        Values that it reads: the network's inputs come first, then each step's result.
    shared : int
        The step whose module is called once more; -1 for a module of its own.
    """

    module: str
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    inputs: tuple[int, ...] = (0,)
    shared: int = -1

    def make(self) -> nn.Module:
        """The module."""
        cls = getattr(modules, self.module, None) or getattr(nn, self.module)
        made: nn.Module = cls(*copy.deepcopy(self.args), **dict(self.options))
        return made

    def code(self) -> str:
        """The call that makes the module."""
        parts = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.options)]
        return f"{self.module}({', '.join(parts)})"


@dataclass(frozen=True)
class Network:
    """Steps over inputs.

    Attributes
    ----------
    inputs : tuple of tuple of int
        Shapes.
    vocabulary : int
        If not 0, the first input holds numbers below it (int64).
    steps : tuple of Step
    outputs : tuple of int
    """

    inputs: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    vocabulary: int = 0

    def code(self) -> str:
        """A few lines that say what the network is."""
        first = len(self.inputs)
        lines = [f"v{i} = input{list(shape)}" for i, shape in enumerate(self.inputs)]
        for i, step in enumerate(self.steps):
            made = step.code() if step.shared < 0 else f"module of v{first + step.shared}"
            lines.append(f"v{first + i} = {made}({', '.join(f'v{k}' for k in step.inputs)})")
        return "\n".join([*lines, f"return {', '.join(f'v{k}' for k in self.outputs)}"])

    def without(self, i: int) -> Network | None:
        """The network with what reads step ``i`` reading the step's first input instead; None if it is shared."""
        if any(s.shared == i for s in self.steps):
            return None
        at, source = len(self.inputs) + i, self.steps[i].inputs[0]

        def moved(k: int) -> int:
            k = source if k == at else k
            return k - 1 if k > at else k

        steps = [
            replace(s, inputs=tuple(map(moved, s.inputs)), shared=s.shared - (s.shared > i))
            for j, s in enumerate(self.steps)
            if j != i
        ]
        return replace(self, steps=tuple(steps), outputs=tuple(dict.fromkeys(map(moved, self.outputs))))


class Module(nn.Module):
    """A network's module, its weights drawn from ``seed``."""

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = network
        self.parts = nn.ModuleList([nn.Identity() if s.shared >= 0 else s.make() for s in network.steps])
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.running_mean is not None:
                nn.init.uniform_(part.running_mean, -0.5, 0.5)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.uniform_(part.weight, -1.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
        self.eval()

    def forward(self, *inputs: Any, noise: float = 0.0, generator: Any = None) -> Any:
        """The outputs; with ``noise`` each step's result is moved by up to that part of its largest element."""
        values = list(inputs)
        for step, part in zip(self.network.steps, self.parts, strict=True):
            called = part if step.shared < 0 else self.parts[step.shared]
            made = called(*(values[k] for k in step.inputs))
            if noise:
                random = torch.rand(made.shape, generator=generator, dtype=made.dtype) * 2 - 1
                made = made + random * noise * made.abs().max()
            values.append(made)
        found = tuple(values[k] for k in self.network.outputs)
        return found[0] if len(found) == 1 else found


def example(network: Network, seed: int) -> tuple[Any, ...]:
    """Inputs of a network."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, shape in enumerate(network.inputs):
        if i == 0 and network.vocabulary:
            found.append(torch.randint(network.vocabulary, shape, generator=generator))
        else:
            found.append(torch.randn(shape, generator=generator))
    return tuple(found)
