"""Thresholds for a trained network: as large as an accuracy budget on calibration data lets them be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseflow.core.prune_result import mean_density
from sparseflow.errors import StructureError
from sparseflow.train.activations.modules import FATReLU
from sparseflow.train.activations.track import quantile
from sparseflow.train.activations.watch import map_densities, watched
from sparseflow.train.trainer import evaluating

STEPS = (1.0, 0.85, 0.7, 0.55, 0.42, 0.3, 0.2)
"""Densities that are tried in each layer, as fractions of its density at the start."""
_BISECTIONS = 7
_PER_BATCH, _BATCHES = 4096, 8  # what of the inputs is looked at


@dataclass(frozen=True)
class ThresholdFit:
    """The outcome of `fit_thresholds`.

    Attributes
    ----------
    thresholds : dict
        By module name, as they are now set.
    density_before, density_after : float
        Of all maps together on the calibration data, each counted by its elements.
    accuracy_before, accuracy_after : float
        On the calibration data, in 0..1.
    evaluations : int
        Passes over the calibration data.
    """

    thresholds: dict[str, float]
    density_before: float
    density_after: float
    accuracy_before: float
    accuracy_after: float
    evaluations: int


@dataclass(frozen=True)
class _Level:
    """One threshold of one layer: what it saves and what it costs when it is raised alone."""

    threshold: float
    saved: float
    cost: float


def fit_thresholds(
    model: nn.Module,
    activations: Mapping[str, nn.Module],
    batches: Sequence[tuple[Tensor, Tensor]],
    budget: float,
    say: Callable[[str], None] = lambda _text: None,
) -> ThresholdFit:
    """Raise the thresholds of `FATReLU` modules until the accuracy has fallen by ``budget``; in place.

    Each layer is tried alone at each density of `STEPS`: what that saves of the maps' elements, what it adds to the
    loss. A price on the loss then chooses one threshold for each layer, and the lowest price at which the whole network
    stays within the budget is found by bisection. At the start's thresholds the budget is kept by definition, so some
    choice always is.

    Parameters
    ----------
    model : nn.Module
        A classifier; it stays on its device and keeps its mode.
    activations : mapping of str to FATReLU
        As `sparsify_activations` gives them.
    batches : sequence of (x, labels)
        Calibration data: some thousand samples of the *training* data, without augmentation. A network is more certain
        about what it was trained on, so leave some of them out of the training, or give a smaller budget.
    budget : float
        Accuracy that may be lost on ``batches``, in 0..1: 0.005 is half a point.

    Returns
    -------
    ThresholdFit

    Raises
    ------
    StructureError
        If there is no `FATReLU`, no data, or the budget is not in [0, 1].

    References
    ----------
    M. Kurtz et al., ICML 2020, section 3.2 (see `FATReLU`), where thresholds are swept layer by layer.
    """
    layers = {n: m for n, m in activations.items() if isinstance(m, FATReLU)}
    if not layers or not batches or not 0.0 <= budget <= 1.0:
        raise StructureError(
            f"thresholds: found {len(layers)} FATReLU modules, {len(batches)} batches, budget {budget}; at least one "
            "module, one batch and a budget in [0, 1] are allowed"
        )
    search = _Search(model, layers, batches, say)
    accuracy, loss = search.evaluate()
    density = mean_density(map_densities(model, layers, batches).values())
    levels = search.sensitivities(loss)
    chosen = search.bisect(levels, accuracy - budget)
    search.put({n: level.threshold for n, level in chosen.items()})
    accuracy_after, _ = search.evaluate()
    return ThresholdFit(
        thresholds={n: float(m.threshold) for n, m in layers.items()},
        density_before=density,
        density_after=mean_density(map_densities(model, layers, batches).values()),
        accuracy_before=accuracy,
        accuracy_after=accuracy_after,
        evaluations=search.evaluations,
    )


class _Search:
    """The network under search; a threshold is never below what it was at the start."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, FATReLU],
        batches: Sequence[tuple[Tensor, Tensor]],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.layers, self.batches, self.say = model, layers, batches, say
        self.start = {n: float(m.threshold) for n, m in layers.items()}
        self.evaluations = 0

    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean loss at the thresholds as they are."""
        right, total, loss = 0, 0, 0.0
        with torch.no_grad(), evaluating(self.model) as device:
            for x, labels in self.batches:
                logits, labels = self.model(x.to(device)).float(), labels.to(device)
                right += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                total += len(labels)
        self.evaluations += 1
        return right / total, loss / total

    def put(self, thresholds: Mapping[str, float]) -> None:
        """Set the thresholds of some layers."""
        with torch.no_grad():
            for name, value in thresholds.items():
                self.layers[name].threshold.fill_(value)

    def sensitivities(self, loss: float) -> dict[str, list[_Level]]:
        """Each layer's levels, those left out that cost more and save less than another."""
        inputs = self._inputs()
        found = {}
        for name, (sample, size) in inputs.items():
            self.say(f"thresholds: {name}")
            natural = float((sample > self.start[name]).float().mean())
            levels = [_Level(self.start[name], 0.0, 0.0)]
            for step in STEPS[1:]:
                threshold = max(self.start[name], float(quantile(sample, 1.0 - step * natural)))
                self.put({name: threshold})
                cost = max(self.evaluate()[1] - loss, 0.0)
                levels.append(_Level(threshold, (1.0 - step) * natural * size, cost))
            self.put({name: self.start[name]})
            found[name] = levels
        return found

    def bisect(self, levels: Mapping[str, list[_Level]], least: float) -> dict[str, _Level]:
        """The choice of the most savings whose accuracy is at least ``least``."""
        best = {n: found[0] for n, found in levels.items()}
        ratios = [x.saved / max(x.cost, 1e-9) for found in levels.values() for x in found[1:] if x.saved > 0]
        if not ratios:
            return best
        low, high = (
            math.log(min(ratios) * 0.1),
            math.log(max(ratios) * 10.0),
        )  # of the price of loss in savings
        for _ in range(_BISECTIONS):
            price = math.exp((low + high) / 2)
            chosen = {n: max(f, key=lambda x: x.saved - price * x.cost) for n, f in levels.items()}
            self.put({n: level.threshold for n, level in chosen.items()})
            if self.evaluate()[0] >= least:
                best, high = chosen, (low + high) / 2
            else:
                low = (low + high) / 2
        return best

    def _inputs(self) -> dict[str, tuple[Tensor, int]]:
        """Some of what every activation receives, for its distribution, and the elements of one sample's map."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        sizes: dict[str, int] = {}

        def see(name: str, x: Tensor, _y: Tensor) -> None:
            flat = x.flatten()
            parts[name].append(flat[:: max(1, flat.numel() // _PER_BATCH) | 1].float().cpu())
            sizes[name] = x[0].numel()

        with watched(self.layers, see), torch.no_grad(), evaluating(self.model) as device:
            for x, _labels in self.batches[:_BATCHES]:
                self.model(x.to(device))
        return {name: (torch.cat(p), sizes[name]) for name, p in parts.items() if p}
