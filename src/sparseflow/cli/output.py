"""What commands print: tables and progress for people, JSON for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from sparseflow.core.files import atomic_write
from sparseflow.errors import InputError

T = TypeVar("T")
WIDTH = 140
"""Columns of tables that go to a file or a pipe."""


def stdout() -> Console:
    """The console for results; wide where the output is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done; silent where that is not a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status(text) as status:
        yield lambda line: status.update(f"{text}: {line}")


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns named in ``numbers`` are set flush right."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name in numbers
        drawn.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return drawn


def write_json(data: Any, path: Path | None) -> bool:
    """Writes ``data`` to ``path``, whole or not at all; ``-`` is standard output. True if that was it.

    Raises
    ------
    SparseflowError
        If the file cannot be written.
    """
    if path is None:
        return False
    text = dumps(data, indent=1, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return True
    atomic_write(path, text)
    return False


def show_results(
    data: dict[str, Any], where: str, then: str, json: Path | None = None, whole: bool = False
) -> None:
    """`write_json`, then the summary of the results' report and a last line, unless standard output got the JSON.

    ``where`` names the results in messages; ``whole`` prints all tables of the report.
    """
    if write_json(data, json):
        return
    from sparseflow.report import build_document, show

    console = stdout()
    show(build_document(data, where), console, whole)
    if then:
        console.print(then)


def milliseconds(seconds: float) -> str:
    """``1.234`` for 1.234 ms: three significant digits at least."""
    value = seconds * 1e3
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def layer_name(weight: str) -> str:
    """A weight's name without its ending: ``layer1.0.conv2``."""
    return weight.removesuffix(".weight")


def find(layers: Mapping[str, T], name: str, where: str) -> T:
    """The layer of that name, or the only one in whose name it stands.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    matches = [name] if name in layers else [known for known in layers if name in known]
    if len(matches) == 1:
        return layers[matches[0]]
    found = "no layer is" if not matches else f"{len(matches)} layers are"
    known = ", ".join((matches or list(layers))[:8])
    raise InputError(f"{where}: {found} called {name!r}; there are {known}, …")
