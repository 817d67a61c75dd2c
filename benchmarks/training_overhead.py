"""What an epoch costs with each method that trains, over an epoch of ordinary training.

    python benchmarks/training_overhead.py --threads 1

A step is a forward and backward pass of `CifarNet` on a batch of random numbers, and SGD; the methods take turns after
each step. An epoch is ``--epoch-steps`` steps (CIFAR-10 has 195 of 256 images) and what the method does at its end.
About two minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from sparseflow.core.codec import encode
from sparseflow.core.files import write_json
from sparseflow.core.structures import Structure, parse_structure
from sparseflow.engine.target.machine import machine_name
from sparseflow.train.methods import METHODS, InTraining
from sparseflow.train.models import CifarNet
from sparseflow.train.rules import Rule

STRUCTURES = (("pattern:4+connectivity", 0.125), ("unstructured", 0.1), ("nm:2:4", 0.5))
"""The first that a method admits is taken."""
RHYTHM = {"gradual": 10, "movement": 10, "rigl": 100}
"""``update_every`` of the methods that make masks now and then, for the share of it in a step."""


@dataclass(frozen=True)
class Overhead:
    """One method's times.

    Attributes
    ----------
    method, structure : str
    step_s : float
        Median of a step.
    mask_s : float
        Median of the steps in which masks are made, where most have none; 0 otherwise.
    end_s : float
        Median of what it does at an epoch's end.
    epoch_s : float
        An epoch without data loading and evaluation.
    ratio : float
        ``epoch_s`` over that of ordinary training.
    """

    method: str
    structure: str
    step_s: float
    mask_s: float
    end_s: float
    epoch_s: float
    ratio: float = 1.0


class Contender:
    """A network in training, with a method or without; `step` and `end` tell what they took."""

    def __init__(self, name: str, rounds: int) -> None:
        torch.manual_seed(0)
        self.name, self.rounds, self.structure = name, rounds, "dense"
        self.model = CifarNet().to(memory_format=torch.channels_last)
        self.method: InTraining | None = None
        if name != "dense":
            structure, density = self._structure(name)
            self.structure = str(structure)
            method = METHODS[name]
            rhythm = {"update_every": 2} if name in RHYTHM else {}  # every second step, to time both kinds
            self.method = method(  # type: ignore[assignment]
                self.model, [Rule("features.*", structure, density)], method.Settings(epochs=100, **rhythm)
            )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, nesterov=True)
        self.steps: list[float] = []
        self.ends: list[float] = []
        if self.method is not None:
            self.method.begin_epoch(30, rounds)

    @staticmethod
    def _structure(name: str) -> tuple[Structure, float]:
        layer = torch.nn.Conv2d(4, 4, 3)
        choices = [(parse_structure(text), density) for text, density in STRUCTURES]
        return next((s, d) for s, d in choices if METHODS[name].refuses(s, layer) is None)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step in the order of calls that `InTraining` states."""
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(x), y)
        penalty = self.method.penalty() if self.method is not None else None
        loss = loss if penalty is None else loss + penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.method is not None:
            self.method.before_step()
        self.optimizer.step()
        if self.method is not None:
            self.method.after_step()
        self.steps.append(time.perf_counter() - start)

    def end(self, epoch: int) -> None:
        """The end of an epoch."""
        start = time.perf_counter()
        if self.method is not None:
            self.method.after_epoch(epoch)
        self.ends.append(time.perf_counter() - start)

    def result(self, epoch_steps: int) -> Overhead:
        """The medians; the first two steps warm up."""
        times = self.steps[2:]
        step = median(times)
        mask, share = 0.0, 0.0
        if self.name in RHYTHM:
            step, mask = median(times[0::2]), median(times[1::2])
            share = 1 / RHYTHM[self.name]
        end = median(self.ends)
        epoch = epoch_steps * (step * (1 - share) + mask * share) + end
        return Overhead(self.name, self.structure, step, mask, end, epoch)


def measure(names: Sequence[str], batch: int, rounds: int, epoch_steps: int) -> list[Overhead]:
    """Ordinary training first, then the methods."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), generator=generator)
    contenders = [Contender(name, rounds) for name in ("dense", *names)]
    for done in range(rounds + 2):
        for contender in contenders:
            contender.step(x, y)
            if done % 2:
                contender.end(31 + done)
    results = [contender.result(epoch_steps) for contender in contenders]
    base = results[0].epoch_s
    return [replace(r, ratio=r.epoch_s / base) for r in results]


def markdown(results: Sequence[Overhead]) -> str:
    """The table of docs/training.md."""
    lines = [
        "| method | structure | step | step with new masks | epoch's end | epoch | × dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        mask = f"{r.mask_s * 1e3:.0f} ms" if r.mask_s else "–"
        structure = parse_structure(r.structure).brief if r.structure != "dense" else "–"
        lines.append(
            f"| `{r.method}` | {structure} | {r.step_s * 1e3:.0f} ms | {mask} | {r.end_s * 1e3:.0f} ms | "
            f"{r.epoch_s:.1f} s | {r.ratio:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    trained = [name for name, method in METHODS.items() if issubclass(method, InTraining)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", default=",".join(trained), help="comma-separated")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each method; even")
    parser.add_argument("--epoch-steps", type=int, default=195, help="steps of an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the times to this file too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = measure([m for m in args.methods.split(",") if m], args.batch, args.rounds, args.epoch_steps)
    print(markdown(results))
    print(f"{machine_name()}, {args.threads} thread(s), torch {torch.__version__}", file=sys.stderr)
    if args.json is not None:
        write_json(args.json, encode(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
