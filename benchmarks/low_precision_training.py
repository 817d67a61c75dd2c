"""Accuracy of a sparse network on levels: bits, levels and batch norms, with training and without.

    tools/fetch_data.sh cifar10
    python benchmarks/low_precision_training.py recipes/cifar10_narrow_int8.toml -o runs/low-precision

The recipe's last stage is ``quantise``; each variant takes its place, with the same epochs where it trains. What comes
before is trained once, in the folder ``before``; a run that is stopped goes on. Prints a Markdown table; two thirds of
an hour of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparseflow.core.prune_result import PruneResult
from sparseflow.train import Recipe, load_recipe, parse_recipe, run_recipe
from sparseflow.train.recipe.stages import QuantiseStage

VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8, batch norm folded during it": {"batch_norm": "during"},
    "int8, batch norm folded before it": {"batch_norm": "before"},
    "int8, steps start at 2 mean/√Q": {"start": "mean"},
    "4 bits uniform": {"bits": 4},
    "4 bits two powers": {"bits": 4, "levels": "two-powers"},
    "6 bits two powers": {"bits": 6, "levels": "two-powers"},
    "4 bits two powers, maps of 4 bits": {"bits": 4, "levels": "two-powers", "maps": 4},
}
"""Name → keys of a stage ``quantise`` that differ from the recipe's."""
ROUNDED: dict[str, dict[str, Any]] = {
    "int8, not trained": {},
    "int8, not trained, min-max": {"ranges": "min-max"},
    "int8, not trained, percentile": {"ranges": "percentile"},
    "int8, not trained, no aids": {"equalise": False, "correct_bias": False},
    "4 bits uniform, not trained": {"bits": 4},
    "4 bits uniform, not trained, no aids": {"bits": 4, "equalise": False, "correct_bias": False},
    "4 bits two powers, not trained": {"bits": 4, "levels": "two-powers"},
    "6 bits two powers, not trained": {"bits": 6, "levels": "two-powers"},
}
"""Name → keys of a stage ``post_training``."""


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe up to its last stage, and with each variant in the place of that one."""
    last = recipe.stages[-1]
    if not isinstance(last, QuantiseStage):
        raise SystemExit(f"{recipe.name}: the last stage is {last.kind}; quantise is allowed")
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    trained = last.model_dump(mode="json", exclude_defaults=True)
    before = content["stages"][:-1]
    ends: dict[str, list[dict[str, Any]]] = {"sparse, float32": []}
    ends |= {name: [{"kind": "post_training", **keys}] for name, keys in ROUNDED.items()}
    ends |= {name: [trained | keys] for name, keys in VARIANTS.items()}
    return {
        name: parse_recipe(content | {"name": name, "stages": [*before, *end]}) for name, end in ends.items()
    }


def row(name: str, result: PruneResult, base: PruneResult) -> str:
    """One line of the table."""
    cells = [
        f"{100 * result.pruned_accuracy:.2f} %",
        f"{100 * (result.pruned_accuracy - base.pruned_accuracy):+.2f}",
    ]
    if result.pruned_validation is not None:
        cells.insert(0, f"{100 * result.pruned_validation:.2f} %")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipes = variants(load_recipe(arguments.recipe))
    base: PruneResult | None = None
    for name, recipe in recipes.items():
        folder = arguments.out / ("before" if base is None else name.replace(" ", "-").replace("/", "-"))
        result = run_recipe(recipe, folder, reuse=[arguments.out / "before"])
        if base is None:
            base = result
            print(
                f"dense {100 * result.dense_accuracy:.2f} %, {result.conv_compression:.2f}x fewer conv weights\n"
            )
            held_out = " validation |" if result.pruned_validation is not None else ""
            print(f"| weights and maps |{held_out} test | points |")
            print("|---|" + "---|" * (held_out.count("|") + 2))
        print(row(name, result, base), flush=True)


if __name__ == "__main__":
    main()
