"""What the methods without training leave of a trained network: accuracy, and how often the answer stays the same.

    python benchmarks/one_shot.py recipes/cifar10_pattern_connectivity.toml --weights runs/cifar10/dense.pt

The recipe gives the network, the data and which layers stay dense; ``--sparsify`` replaces its structures. Calibration
is on training images, the accuracy on the first ``--images`` test images. Rows are printed as they are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.core.structures import parse_sparsify
from sparseflow.errors import StructureError
from sparseflow.train.checkpoint import load_weights
from sparseflow.train.methods import MaskedWeights, OneShot, method_of
from sparseflow.train.recipe.recipe import Recipe, load_recipe
from sparseflow.train.recipe.sources import Sources
from sparseflow.train.rules import Rule

SPARSIFY = "nm:2:4,unstructured@0.7,block:4x1@0.5,pattern:4,column@0.4,filter@0.2"
HEAD = "| structure | method | test accuracy | same answer as dense |\n|---|---|---|---|"


@dataclass(frozen=True)
class Outcome:
    """One pruned network.

    Attributes
    ----------
    sparsify, method : str
    accuracy, agreement : float
        Of the test images, in 0..1: right answers, and answers equal to the dense network's.
    """

    sparsify: str
    method: str
    accuracy: float
    agreement: float

    def row(self) -> str:
        """As a row of the table."""
        return f"| {self.sparsify} | `{self.method}` | {self.accuracy:.2%} | {self.agreement:.2%} |"


def rules_of(recipe: Recipe, sparsify: str) -> list[Rule]:
    """The recipe's rules with another structure, where it prunes at all."""
    spec = parse_sparsify(sparsify)
    rules = [config.rule() for config in recipe.rules] or [Rule("*", spec.structure, spec.density)]
    pruned = {"structure": spec.structure, "density": spec.density}
    return [rule if rule.structure is None else replace(rule, **pruned) for rule in rules]


def answers(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """The most likely class of each image; shape (images,)."""
    with torch.inference_mode():
        return torch.cat([model.eval()(x).argmax(1) for x in images])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune with each method and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="state dictionary of the dense network")
    parser.add_argument("--sparsify", default=SPARSIFY, help="comma-separated STRUCTURE@SPARSITY")
    one_shot = ["magnitude", "second_order", "taylor", "wanda"]
    parser.add_argument("--methods", default=",".join(one_shot), help="comma-separated")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe)
    sources = Sources(recipe)
    model = sources.model()
    load_weights(model, args.weights)
    images, labels = _some(sources.test(), args.images)
    dense = answers(model, images)
    print(HEAD)
    print(f"| dense | – | {float((dense == labels).float().mean()):.2%} | 100.00% |", flush=True)
    for sparsify in args.sparsify.split(","):
        for name in args.methods.split(","):
            load_weights(model, args.weights)
            try:
                prune(model, name, rules_of(recipe, sparsify), sources)
            except StructureError as error:
                print(f"{sparsify}, {name}: {error}", file=sys.stderr)
                continue
            now = answers(model, images)
            right, same = ((now == other).float().mean() for other in (labels, dense))
            print(Outcome(sparsify, name, float(right), float(same)).row(), flush=True)
    return 0


def prune(model: nn.Module, name: str, rules: list[Rule], sources: Sources) -> None:
    """Prune in place."""
    torch.manual_seed(0)
    kind, said = method_of(name)
    if not issubclass(kind, OneShot):
        raise StructureError(f"{name} needs training; choose a one-shot method")
    method = kind(model, rules, kind.Settings(**said))
    method.calibrate(sources.train(0))
    MaskedWeights(model, method.finish())


def _some(loader: object, count: int) -> tuple[list[Tensor], Tensor]:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for x, y in loader:  # type: ignore[attr-defined]
        left = count - sum(len(i) for i in images)
        if left <= 0:
            break
        images.append(x[:left])
        labels.append(y[:left])
    return images, torch.cat(labels)


if __name__ == "__main__":
    sys.exit(main())
