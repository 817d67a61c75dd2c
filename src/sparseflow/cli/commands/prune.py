"""``sparseflow prune``: a recipe → a trained, pruned, exported network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli import options, output
from sparseflow.errors import RecipeError, needs


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe to run.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for checkpoints, model and results.")
    ],
    reuse: options.ReuseOption = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append one line for each epoch to this CSV file.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Log each epoch for TensorBoard.")
    ] = None,
    json: options.JsonOption = None,
) -> None:
    """Run a training recipe: dense training, sparsity training, masked retraining, export.

    The same command goes on where a stopped one was. OUT receives model.pt2, ready for `compile` and `bench`.
    Started by torchrun, several processes share each batch.

    **Examples**

        sparseflow prune recipe.toml -o runs/pruned
        sparseflow bench runs/pruned/model.pt2
        sparseflow report runs/pruned
        torchrun --nproc-per-node 2 -m sparseflow.cli.main prune recipe.toml -o runs/pruned
    """
    with needs("train", str(recipe), RecipeError):
        from sparseflow.cli.training import log_files, training_progress
        from sparseflow.train.progress import TrainEvent
        from sparseflow.train.recipe.recipe import load_recipe
        from sparseflow.train.recipe.run import run_recipe

    loaded = load_recipe(recipe)
    with training_progress() as progress, log_files(csv, tensorboard) as logs:

        def tell(event: TrainEvent) -> None:
            for listener in (progress, *logs):
                listener(event)

        run_recipe(loaded, out, reuse=reuse or (), progress=tell)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first of the processes that train together tells
    from sparseflow.report import read_results

    then = f"model: {out / 'model.pt2'}; report: sparseflow report {out}"
    output.show_results(*read_results(out), then, json)
