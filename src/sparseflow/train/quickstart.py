"""The quick start's recipes as Python values, for where no recipe file is at hand."""

from __future__ import annotations

from typing import Any

from sparseflow.train.recipe.recipe import Recipe, parse_recipe

SPARSITY = 0.88
"""Of every pruned layer: with the dense stem counted in, 8 times fewer convolution weights."""

TITLES = {
    "unstructured": "single weights",
    "block:4x1": "blocks of 4 filters x 1 channel position",
    "pattern:4+connectivity": "pattern and connectivity",
}
"""The structures that the quick start compares, as `parse_structure` reads them, and what they are."""


def quickstart_recipe(structure: str | None) -> Recipe:
    """The recipe for MNIST-5k; the dense stage is the same for all structures, so `run_recipe` can reuse it.

    Parameters
    ----------
    structure : str or None
        Any structure of free density, such as a key of `TITLES`; None for the dense network alone.

    Raises
    ------
    RecipeError
        If the structure cannot be read or cannot have the sparsity.
    """
    stages: list[dict[str, Any]] = [_stage("dense", 8, warmup=1.0)]
    rules = []
    if structure is not None:
        rules = [{"layers": "features.*", "sparsify": f"{structure}@{SPARSITY}"}]
        ramp = {"rho": 1e-3, "rho_factor": 5.0, "rho_steps": 4}
        stages += [_stage("admm", 4, final=0.2, **ramp), _stage("retrain", 6, warmup=0.5)]
    title = "dense" if structure is None else TITLES.get(structure, structure)
    return parse_recipe(
        {
            "name": f"MNIST-5k, {title}",
            "seed": 1,
            "data": {"name": "mnist5k", "batch_size": 64, "crop": 2},
            "model": {"name": "mnist_cnn"},
            "rules": rules,
            "stages": stages,
        }
    )


def _stage(kind: str, epochs: int, **more: float) -> dict[str, Any]:
    common = {"learning_rate": 0.05, "label_smoothing": 0.1, "channels_last": True}
    return {"kind": kind, "epochs": epochs, **common, **more}
