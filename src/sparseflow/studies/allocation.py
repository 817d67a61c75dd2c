"""Allocations compared: a trained network pruned several ways to the same measured latency, each retrained alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseflow.core.plan import Measurement
from sparseflow.engine.compile import compile
from sparseflow.engine.machine import machine_name
from sparseflow.train import Recipe, parse_recipe
from sparseflow.train.allocation import Assigned, allocate, resolved
from sparseflow.train.methods import Magnitude, MaskedWeights
from sparseflow.train.run import load_weights
from sparseflow.train.sources import Sources

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


class Timing:
    """Measures what an allocation costs in a compiled engine, masks by magnitude, before anything is retrained."""

    def __init__(self, repeats: int = 200, measure: bool = True) -> None:
        self.repeats, self.measure = repeats, measure

    def of(self, recipe: Recipe) -> tuple[Measurement, tuple[Assigned, ...]]:
        """The engine's time and the decisions behind it."""
        sources = Sources(recipe)
        torch.manual_seed(recipe.seed)
        model = sources.model()
        if recipe.model is not None and recipe.model.weights is not None:
            load_weights(model, recipe.model.weights)
        rules = tuple(config.rule() for config in recipe.rules)
        assigned: tuple[Assigned, ...] = ()
        if recipe.allocation is not None:
            assigned = allocate(recipe.allocation, model, rules, sources.train(0))
        MaskedWeights(model, Magnitude(model, resolved(rules, assigned)).finish())
        return self.engine(model, next(iter(sources.test()))[0][:1]), assigned

    def engine(self, model: nn.Module, x: torch.Tensor) -> Measurement:
        """Time of a call of the compiled model on ``x``."""
        engine = compile(model.eval(), (x,), measure=self.measure)
        return engine.measure(x, repeats=self.repeats, warmup=20)


def fitted(
    recipe: Content, target_s: float, timing: Timing, say: Callable[[str], None]
) -> tuple[Content, Measurement, tuple[Assigned, ...]]:
    """The recipe with the largest latency budget whose engine takes about ``target_s``.

    The table's times are those of layers alone; what the whole engine takes differs from their sum, so the budget is
    corrected by the ratio a few times, and the best of what was tried is kept.
    """
    budget = target_s
    best: tuple[Content, Measurement, tuple[Assigned, ...]] | None = None
    for _ in range(STEPS):
        content = recipe | {"allocation": recipe["allocation"] | {"latency_ms": 1e3 * budget}}
        latency, assigned = timing.of(parse_recipe(content))
        ratio = latency.median_s / target_s
        say(
            f"budget {1e3 * budget:.3f} ms: engine {1e3 * latency.median_s:.3f} ms, {ratio:.3f} of the target"
        )
        if best is None or _distance(ratio) < _distance(best[1].median_s / target_s):
            best = (content, latency, assigned)
        if 1 - CLOSE <= ratio <= 1:
            break
        budget /= ratio
    return best or (recipe, *timing.of(parse_recipe(recipe)))


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
