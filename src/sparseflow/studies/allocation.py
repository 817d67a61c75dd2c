"""Allocations compared: a trained network pruned several ways to the same measured latency, each retrained alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sparseflow.core.files import write_json
from sparseflow.core.plan import Measurement
from sparseflow.engine.compile import compile
from sparseflow.engine.target.machine import machine_name
from sparseflow.train import parse_recipe
from sparseflow.train.allocation import Assigned, LatencyAware, Problem, slots_of
from sparseflow.train.checkpoint import load_weights
from sparseflow.train.methods import ByScores, MaskedWeights
from sparseflow.train.recipe.sources import Sources

Content = dict[str, Any]
STEPS = 5
"""Times that a budget is corrected by what the engine really took."""
CLOSE = 0.01
"""How far below the target the engine may be when no further correction is tried."""


def recipe_of(dense: Path, choose: Sequence[str], allocation: Content, epochs: int) -> Content:
    """A recipe that prunes the CIFAR-10 network in ``dense`` in one shot and retrains it for a few epochs."""
    return {
        "name": f"CIFAR-10, {allocation['strategy']} over {', '.join(choose)}",
        "seed": 1,
        "threads": 1,
        "data": {"name": "cifar10", "batch_size": 256, "flip": "alternate", "crop": 2},
        "model": {"name": "cifar_net", "weights": str(dense)},
        "rules": [{"layers": "features.*", "choose": list(choose)}],
        "allocation": allocation,
        "stages": [
            {"kind": "magnitude"},
            {
                "kind": "retrain",
                "epochs": epochs,
                "learning_rate": 0.1,
                "warmup": 0.3,
                "weight_decay": 5e-4,
                "label_smoothing": 0.2,
                "freeze": ["stem"],
                "precision": "bf16",
                "channels_last": True,
                "evaluate_every": epochs,
            },
        ],
    }


class Subject:
    """The dense network of a recipe, pruned by magnitude and timed in a compiled engine, before any retraining."""

    def __init__(self, content: Content, repeats: int = 200, measure: bool = True) -> None:
        self.content, self.repeats, self.measure = content, repeats, measure
        recipe = parse_recipe(content)
        self.sources = Sources(recipe)
        torch.manual_seed(recipe.seed)
        self.model = self.sources.model()
        if recipe.model is not None and recipe.model.weights is not None:
            load_weights(self.model, recipe.model.weights)
        rules = tuple(config.rule() for config in recipe.rules)
        self.problem = Problem(self.model, slots_of(self.model, rules), self.sources.train(0))

    def latency(self, assigned: Sequence[Assigned]) -> Measurement:
        """Time of a call with one image of the network pruned as decided."""
        model = copy.deepcopy(self.model)
        MaskedWeights(model, ByScores(model, [a.rule() for a in assigned]).finish())
        x = next(iter(self.sources.test()))[0][:1]
        engine = compile(model.eval(), (x,), measure=self.measure)
        return engine.measure(x, repeats=self.repeats, warmup=20)

    def decided(self, assigned: Sequence[Assigned]) -> Content:
        """The recipe with the decision in place of the allocation."""
        rules = [
            {"layers": a.name, "sparsify": f"{a.structure}@{1 - a.density:.6g}" if a.structure else "dense"}
            for a in assigned
        ]
        return {k: v for k, v in self.content.items() if k != "allocation"} | {"rules": rules}


def scanned(subject: Subject, strategy: LatencyAware, path: Path) -> list[list[Assigned]]:
    """The options of a latency-aware allocation, kept in ``path``: the scan takes minutes, budgets are tried often."""
    if not path.is_file():
        options = strategy.options(subject.problem)
        rows = [[option.to_json() for option in found] for found in options]
        write_json(path, {"kind": "allocation-options", "options": rows})
    rows = json.loads(path.read_text(encoding="utf-8"))["options"]
    return [[Assigned.from_json(o) for o in found] for found in rows]


def fitted(
    subject: Subject,
    strategy: LatencyAware,
    options: list[list[Assigned]],
    target_s: float,
    say: Callable[[str], None],
) -> tuple[tuple[Assigned, ...], Measurement]:
    """The latency-aware decision whose engine takes about ``target_s``.

    The table's times are those of layers alone; what the whole engine takes differs from their sum, so the budget is
    corrected by the ratio a few times, and the best of what was tried is kept.
    """
    budget = target_s
    tried: list[tuple[float, tuple[Assigned, ...], Measurement]] = []
    for _ in range(STEPS):
        assigned = strategy.model_copy(update={"latency_ms": 1e3 * budget}).choose(subject.problem, options)
        latency = subject.latency(assigned)
        ratio = latency.median_s / target_s
        say(
            f"budget {1e3 * budget:.3f} ms: engine {1e3 * latency.median_s:.3f} ms, {ratio:.3f} of the target"
        )
        tried.append((_distance(ratio), assigned, latency))
        if 1 - CLOSE <= ratio <= 1:
            break
        budget /= ratio
    _, assigned, latency = min(tried, key=lambda found: found[0])
    return assigned, latency


def _distance(ratio: float) -> float:
    """How far a latency is from the target; slower counts three times."""
    return 3 * (ratio - 1) if ratio > 1 else 1 - ratio


def interleaved(
    models: Sequence[Path], x: torch.Tensor, rounds: int, measure: bool = True
) -> list[Measurement]:
    """Each exported model compiled, then timed in turn with the others."""
    engines = [compile(path, measure=measure) for path in models]
    samples: list[list[float]] = [[] for _ in engines]
    for _ in range(rounds):
        for engine, found in zip(engines, samples, strict=True):
            found.append(engine.measure(x, repeats=30).median_s)
    return [Measurement.of(found, engines[0].threads, machine_name()) for found in samples]
