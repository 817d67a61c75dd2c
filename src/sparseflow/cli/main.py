"""The entry point: one app, one file a command; an error the user can cause is one line and exit code 1."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sparseflow
from sparseflow.cli.commands import bench, compile, explain, inspect, prune, quickstart, report, sweep, tune
from sparseflow.errors import SparseflowError


class _Group(TyperGroup):
    """Commands whose errors are one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (SparseflowError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            line = " ".join(str(error).split()) or type(error).__name__
            print(f"sparseflow: {line}", file=sys.stderr)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    name="sparseflow",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"sparseflow {sparseflow.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="On an error, show where it came from.")
    ] = False,
) -> None:
    """The sparsity flow for Apache TVM: from sparsity training to machine code that is faster than dense.

    MODEL is a .pt2 file (of torch.export.save), an .onnx file, or zoo:NAME.

    **First steps**

        sparseflow quickstart
        sparseflow bench zoo:resnet50 --sparsify block:4x1@0.9
        sparseflow compile model.onnx -o model.engine
        sparseflow explain model.engine
    """
    if not traceback:
        warnings.simplefilter("ignore")


PANELS = {
    "Train": (quickstart, prune, sweep, tune),
    "Compile and run": (compile, explain, bench),
    "Look": (inspect, report),
}
"""The commands as the help lists them; each is the function ``command`` of the file of its name."""
for _panel, _files in PANELS.items():
    for _file in _files:
        app.command(_file.__name__.rpartition(".")[2], rich_help_panel=_panel)(_file.command)


def run() -> None:
    """What the ``sparseflow`` script calls."""
    app()


if __name__ == "__main__":
    run()
